package kind

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newSignalFD(t *testing.T, mask uint64, flags int) int {
	t.Helper()
	none := -1
	fd, _, errno := unix.Syscall6(unix.SYS_SIGNALFD4, uintptr(none), uintptr(unsafe.Pointer(&mask)), 8, uintptr(flags|unix.SFD_CLOEXEC), 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd)
}

func TestSignalFD(t *testing.T) {
	const usr1 = 1 << (unix.SIGUSR1 - 1)
	for _, mask := range []uint64{0, usr1, usr1 | 1<<33 | 1<<63} {
		for _, flags := range []int{0, unix.SFD_NONBLOCK} {
			s, _ := roundTrip(t, newSignalFD(t, mask, flags))
			var r signalFDRec
			must(t, decodeRec(&s.env.Manifest.Files[0], &r))
			if r.Mask != mask {
				t.Errorf("mask %#x, want %#x", r.Mask, mask)
			}
		}
	}
}

func TestSignalFDRefusals(t *testing.T) {
	s := newStage(t)
	s.add(newSignalFD(t, 1, 0))[0].Info.SigMask = nil
	refused(t, s.check(), "does not tell which signals it takes")
}
