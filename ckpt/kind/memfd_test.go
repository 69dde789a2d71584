package kind

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestMemFD(t *testing.T) {
	fd, err := unix.MemfdCreate("a (deleted)\nname", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("0123456789"))
	must(t, err)
	ro := open(t, "/proc/self/fd/"+itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK)
	_, err = unix.Seek(ro, 4, unix.SEEK_SET)
	must(t, err)
	s := newStage(t)
	s.segment = fd // what the driver would have made again
	got := s.trip(fd, ro)
	buf := make([]byte, 9)
	if n, err := unix.Read(got[1], buf); err != nil || string(buf[:n]) != "456789" {
		t.Errorf("read %q %v", buf, err)
	}
	if _, err := unix.Write(got[1], buf); err != unix.EBADF {
		t.Errorf("writing to a descriptor opened for reading: %v", err)
	}
	if s.env.Manifest.Files[1].Segment != 1 {
		t.Error("no segment recorded")
	}
}

func TestMemFDHuge(t *testing.T) {
	fd, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if err != nil {
		t.Logf("no huge page memfds on this kernel: %v", err)
		return
	}
	defer unix.Close(fd)
	s := newStage(t)
	s.add(fd)
	if all := s.check(); len(all) != 0 {
		t.Errorf("a memfd of huge pages is refused: %v", all)
	}
}
