package kind

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

func TestEventFD(t *testing.T) {
	for _, flags := range []int{0, unix.EFD_SEMAPHORE, unix.EFD_NONBLOCK, unix.EFD_NONBLOCK | unix.EFD_SEMAPHORE} {
		for _, count := range []uint64{0, 1, math.MaxUint32 + 1, math.MaxUint64 - 1} {
			fd, err := unix.Eventfd(0, flags|unix.EFD_CLOEXEC)
			must(t, err)
			defer unix.Close(fd)
			if count > 0 {
				_, err = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, count))
				must(t, err)
			}
			_, got := roundTrip(t, fd)
			if count == 0 {
				continue
			}
			buf := make([]byte, 8)
			_, err = unix.Read(got[0], buf)
			must(t, err)
			want := count
			if flags&unix.EFD_SEMAPHORE != 0 {
				want = 1
			}
			if v := binary.NativeEndian.Uint64(buf); v != want {
				t.Errorf("read %d, want %d", v, want)
			}
		}
	}
}

func TestEventFDRefusals(t *testing.T) {
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	s := newStage(t)
	f := s.add(fd)[0]
	f.Info.EventFD = &procfs.EventFD{Count: 1}
	refused(t, s.check(), "does not tell whether it counts as a semaphore")
	f.Info.EventFD = &procfs.EventFD{Count: math.MaxUint64, HasSemaphore: true}
	refused(t, s.check(), "its count has overflowed")
}
