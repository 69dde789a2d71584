package kind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// newFifo makes a fifo and opens both ends of it, with content.
func newFifo(t *testing.T, content string) (path string, r, w int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	r = open(t, path, unix.O_RDONLY|unix.O_NONBLOCK)
	w = open(t, path, unix.O_WRONLY)
	_, err := unix.Write(w, []byte(content))
	must(t, err)
	return path, r, w
}

// gone closes descriptors as the death of their process does, and keeps the numbers taken.
func gone(t *testing.T, fds ...int) {
	t.Helper()
	null := open(t, "/dev/null", unix.O_RDONLY)
	for _, fd := range fds {
		must(t, unix.Dup3(null, fd, unix.O_CLOEXEC))
	}
}

func TestFifo(t *testing.T) {
	path, r, w := newFifo(t, "content")
	_, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, 1<<18)
	must(t, err)
	w2 := open(t, path, unix.O_WRONLY|unix.O_NOFOLLOW)
	s := newStage(t)
	s.add(w, r, w2)
	must(t, image.Refusals(s.check()))
	recs := s.dump()
	gone(t, r, w, w2)
	got, err := s.open()
	must(t, err)
	if pipeSize(t, got[0]) != 1<<18 {
		t.Errorf("capacity %d", pipeSize(t, got[0]))
	}
	for i, fd := range got {
		if now := uint32(flagsOf(t, fd)); now != recs[i].Flags {
			t.Errorf("flags %#o, were %#o", now, recs[i].Flags)
		}
		if link, _ := os.Readlink("/proc/self/fd/" + itoa(fd)); link != path {
			t.Errorf("link %q", link)
		}
	}
	_, err = unix.Write(got[0], []byte(" and more"))
	must(t, err)
	if now, end := drain(t, got[1]); string(now) != "content and more" || end {
		t.Errorf("read %q", now)
	}
}

// TestFifoStillOpen: the tree runs on, or an outside process has kept the fifo open.
func TestFifoStillOpen(t *testing.T) {
	_, r, w := newFifo(t, "content")
	s := newStage(t)
	s.trip(r, w) // the same content is in it: fine
	_, err := unix.Write(w, []byte("x"))
	must(t, err)
	_, err = s.open()
	if err == nil {
		t.Fatal("the content of two trees was mixed")
	}
	wantWords(t, err.Error(), "another process has it open and 8 other bytes are in it")
}

func TestFifoOneEnd(t *testing.T) {
	_, r, w := newFifo(t, "content")
	gone(t, w)
	s := newStage(t)
	s.add(r)
	if all := s.check(); len(all) != 0 {
		t.Fatal(all)
	}
	s.dump()
	gone(t, r)
	got, err := s.open()
	must(t, err)
	if now, end := drain(t, got[0]); string(now) != "content" || !end {
		t.Errorf("read %q, end %v", now, end)
	}

	_, r, w = newFifo(t, "")
	gone(t, r)
	s = newStage(t)
	s.add(w)
	s.dump()
	gone(t, w)
	got, err = s.open()
	must(t, err)
	if _, err := unix.Write(got[0], []byte("x")); err != unix.EPIPE {
		t.Errorf("writing without a reader: %v", err)
	}
}

func TestFifoOutside(t *testing.T) {
	path, r, w := newFifo(t, "")
	s := newStage(t)
	s.outside[unix.O_WRONLY] = 77
	s.add(r)
	wantFinding(t, s.check(), image.Lose, "pid 77 outside the tree writes to this fifo", "connected again if it still has the fifo open")
	s.dump()
	gone(t, r)
	r2 := open(t, path, unix.O_RDONLY|unix.O_NONBLOCK) // so that w is not broken meanwhile
	got, err := s.open()
	must(t, err)
	gone(t, r2)
	_, err = unix.Write(w, []byte("hello again"))
	must(t, err)
	if now, _ := drain(t, got[0]); string(now) != "hello again" {
		t.Errorf("read %q", now)
	}
	s = newStage(t)
	s.outside[unix.O_RDONLY] = 78
	s.add(w)
	wantFinding(t, s.check(), image.Lose, "pid 78 outside the tree reads from this fifo")
}

func TestFifoDeleted(t *testing.T) {
	path, r, w := newFifo(t, "content")
	must(t, os.Remove(path))
	_, got := roundTrip(t, r, w)
	_, err := unix.Write(got[1], []byte("!"))
	must(t, err)
	if now, _ := drain(t, got[0]); string(now) != "content!" {
		t.Errorf("read %q", now)
	}
	if now, _ := drain(t, r); string(now) != "content" {
		t.Errorf("the old one has %q", now)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}

	path, r, w = newFifo(t, "")
	must(t, os.Remove(path))
	gone(t, r)
	s := newStage(t)
	s.outside[unix.O_RDONLY] = 79
	s.add(w)
	wantFinding(t, s.check(), image.Lose, "pid 79", "the fifo was deleted")
	s.dump()
	got, err = s.open()
	must(t, err)
	_, err = unix.Write(got[0], []byte("lost reader"))
	must(t, err)
	if s.output() != "lost reader" {
		t.Errorf("output %q", s.output())
	}
}

func TestFifoChanged(t *testing.T) {
	path, r, w := newFifo(t, "")
	s := newStage(t)
	s.add(r, w)
	recs := s.dump()
	must(t, os.Remove(path))
	_, err := fifo{}.CheckOpen(&recs[0], s.env)
	sameVerdict(t, "CheckOpen", "", err, "", "is missing")
	file(t, path, "")
	_, err = fifo{}.Open(&recs[0], s.env)
	sameVerdict(t, "Open", "", err, "", "is a regular file now, but was a fifo")
	must(t, os.Remove(path))
	must(t, unix.Mkfifo(path+"x", 0o600))
	must(t, unix.Mkfifo(path, 0o600))
	warn, err := fifo{}.CheckOpen(&recs[0], s.env)
	var now unix.Stat_t
	must(t, unix.Stat(path, &now))
	if now.Ino != s.scene.Files[0].Stat.Ino {
		sameVerdict(t, "CheckOpen", warn, err, "was replaced", "")
		clear(s.env.Shared)
		got, err := fifo{}.Open(&recs[0], s.env)
		must(t, err)
		unix.Close(got)
		wantWords(t, strings.Join(s.warned, "\n"), "was replaced")
	}
}
