package kind

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// newPipe makes a pipe of a capacity with content.
func newPipe(t *testing.T, flags, capacity int, content []byte) (r, w int) {
	t.Helper()
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC|flags))
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	_, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, capacity)
	must(t, err)
	if len(content) > 0 {
		n, err := unix.Write(p[1], content)
		if err != nil || n != len(content) {
			t.Fatalf("wrote %d of %d: %v", n, len(content), err)
		}
	}
	return p[0], p[1]
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// drain reads what is in a pipe without waiting for more; end tells that end of file came.
func drain(t *testing.T, fd int) (all []byte, end bool) {
	t.Helper()
	own, err := reopenOrSame(fd)
	must(t, err)
	defer unix.Close(own)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(own, buf)
		if err == unix.EAGAIN {
			return all, false
		}
		must(t, err)
		if n == 0 {
			return all, true
		}
		all = append(all, buf[:n]...)
	}
}

// reopenOrSame is a description of our own that does not wait.
func reopenOrSame(fd int) (int, error) { return reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK) }

func pipeSize(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	must(t, err)
	return n
}

func TestPipe(t *testing.T) {
	for _, c := range []struct{ flags, capacity, content int }{
		{0, 65536, 0}, {unix.O_NONBLOCK, 65536, 1}, {0, 4096, 4096}, {0, 1 << 20, 1 << 20}, {0, 65536, 65536}, {0, 8192, 5000},
	} {
		want := noise(c.content)
		r, w := newPipe(t, c.flags, c.capacity, want)
		s, got := roundTrip(t, r, w)
		if pipeSize(t, got[0]) != c.capacity || pipeSize(t, got[1]) != c.capacity {
			t.Errorf("capacity %d, want %d", pipeSize(t, got[0]), c.capacity)
		}
		if old, _ := drain(t, r); !bytes.Equal(old, want) {
			t.Errorf("the old pipe has %d bytes of %d", len(old), len(want))
		}
		if now, end := drain(t, got[0]); !bytes.Equal(now, want) || end {
			t.Errorf("the new pipe has %d bytes of %d, end %v", len(now), len(want), end)
		}
		if _, err := unix.Write(got[1], []byte("more")); err != nil {
			t.Error(err)
		}
		if now, _ := drain(t, got[0]); string(now) != "more" {
			t.Errorf("through the new pipe came %q", now)
		}
		if len(s.warned) != 0 {
			t.Errorf("warned: %q", s.warned)
		}
	}
}

// TestPipeParts: content in many parts, the first page read in part, as programs leave it.
func TestPipeParts(t *testing.T) {
	r, w := newPipe(t, 0, 65536, nil)
	for i := range 30 { // two to a page
		_, err := unix.Write(w, bytes.Repeat([]byte{byte(i)}, 1500))
		must(t, err)
	}
	_, err := unix.Read(r, make([]byte, 777))
	must(t, err)
	_, got := roundTrip(t, r, w)
	want, _ := drain(t, r)
	if now, _ := drain(t, got[0]); !bytes.Equal(now, want) || len(now) != 30*1500-777 {
		t.Errorf("%d bytes, want %d", len(now), len(want))
	}
}

// TestPipeManyEnds: several open file descriptions of each end, one of them both ways.
func TestPipeManyEnds(t *testing.T) {
	r, w := newPipe(t, 0, 65536, []byte("content"))
	self := "/proc/self/fd/"
	fds := []int{
		open(t, self+itoa(w), unix.O_WRONLY|unix.O_NONBLOCK), r, open(t, self+itoa(r), unix.O_RDONLY),
		w, open(t, self+itoa(r), unix.O_RDWR), open(t, self+itoa(r), unix.O_RDONLY|unix.O_NONBLOCK),
	}
	s, got := roundTrip(t, fds...)
	if len(s.blobs) != 1 {
		t.Errorf("%d blobs for one pipe", len(s.blobs))
	}
	for i, fd := range got {
		for _, other := range got[:i] {
			if same(t, fd, other) {
				t.Errorf("%d and %d are one open file description", fd, other)
			}
		}
		var a, b unix.Stat_t
		must(t, unix.Fstat(fd, &a))
		must(t, unix.Fstat(got[0], &b))
		if a.Ino != b.Ino {
			t.Error("not one pipe any more")
		}
		if a, b := flagsOf(t, fds[i]), flagsOf(t, fd); a != b {
			t.Errorf("flags %#o, were %#o", b, a)
		}
	}
}

func same(t *testing.T, a, b int) bool {
	t.Helper()
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return r == 0
}

func flagsOf(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	must(t, err)
	return n
}

// TestPipeClosedEnds: the other end is closed everywhere, and the restored pipe knows it.
func TestPipeClosedEnds(t *testing.T) {
	r, w := newPipe(t, 0, 65536, []byte("last words"))
	r2, w2 := newPipe(t, 0, 65536, []byte("nobody reads this"))
	must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), w, unix.O_CLOEXEC)) // closes it
	must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), r2, unix.O_CLOEXEC))
	s := newStage(t)
	s.add(r, w2)
	if all := s.check(); len(all) != 0 {
		t.Fatal(all)
	}
	s.dump()
	got, err := s.open()
	must(t, err)
	buf := make([]byte, 99)
	if n, err := unix.Read(got[0], buf); err != nil || string(buf[:n]) != "last words" {
		t.Errorf("read %q %v", buf, err)
	}
	if n, err := unix.Read(got[0], buf); n != 0 || err != nil {
		t.Errorf("then %d %v, want end of file", n, err)
	}
	if _, err := unix.Write(got[1], buf); err != unix.EPIPE {
		t.Errorf("writing without a reader: %v", err)
	}
	if s.output() != "" {
		t.Errorf("output %q", s.output())
	}
}

// TestPipeOutside: the other end is held by a process outside the tree.
func TestPipeOutside(t *testing.T) {
	r, _ := newPipe(t, 0, 65536, []byte("half a line"))
	s := newStage(t)
	s.outside[unix.O_WRONLY] = 4711
	s.add(r)
	wantFinding(t, s.check(), image.Lose, "only pid 4711 outside the tree writes", "then end of file")
	s.dump()
	got, err := s.open()
	must(t, err)
	if all, end := readAll(t, got[0]); string(all) != "half a line" || !end {
		t.Errorf("read %q", all)
	}

	_, w := newPipe(t, 0, 65536, []byte("the outside reader gets this from the old pipe"))
	_, w2 := newPipe(t, 0, 65536, nil)
	s = newStage(t)
	s.outside[unix.O_RDONLY] = 4712
	s.add(w, w2)
	all := s.check()
	if len(all) != 2 {
		t.Fatal(all)
	}
	wantFinding(t, all[:1], image.Lose, "only pid 4712 outside the tree reads", "goes to NAME.out")
	s.dump()
	got, err = s.open()
	must(t, err)
	for i, text := range []string{"one ", "two ", "three"} {
		_, err = unix.Write(got[i%2], []byte(text))
		must(t, err)
	}
	if s.output() != "one two three" {
		t.Errorf("output %q", s.output())
	}
}

func readAll(t *testing.T, fd int) (all []byte, end bool) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		must(t, err)
		if n == 0 {
			return all, true
		}
		all = append(all, buf[:n]...)
	}
}

// TestPipeAlsoOutside: both ends are in the tree, and someone outside holds one too.
func TestPipeAlsoOutside(t *testing.T) {
	r, w := newPipe(t, 0, 65536, []byte("x"))
	s := newStage(t)
	s.outside[unix.O_WRONLY] = 99
	s.add(r, w)
	wantFinding(t, s.check(), image.Lose, "pid 99 outside the tree writes to this pipe too")
	s.outside = map[int]int{unix.O_RDONLY: 98}
	s.scene.Outside = func(_, _ uint64, access int) int { return s.outside[access] }
	wantFinding(t, s.check(), image.Lose, "pid 98 outside the tree reads from this pipe too")
	s.dump()
	got, err := s.open()
	must(t, err)
	_, err = unix.Write(got[1], []byte("y"))
	must(t, err)
	if now, _ := drain(t, got[0]); string(now) != "xy" {
		t.Errorf("through the pipe came %q", now)
	}
}

// TestPipeHostile: more content than the capacity, and a capacity that cannot be had.
func TestPipeHostile(t *testing.T) {
	s := newStage(t)
	s.blobs = [][]byte{make([]byte, 9000)}
	for _, c := range []int{4096, -1, 1 << 40} {
		rec := image.File{Kind: "pipe", Flags: unix.O_RDONLY, Blob: 1, Path: "pipe:[1]"}
		must(t, encodeRec(&rec, &pipeRec{identity: identity{Ino: 1}, Capacity: c}))
		s.env.Manifest.Files = []image.File{rec}
		if fd, err := (pipe{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("capacity %d accepted", c)
		}
		must(t, s.closeShared())
	}
	rec := image.File{Kind: "pipe", Path: "pipe:[1]"}
	must(t, encodeRec(&rec, &pipeRec{Capacity: 4096}))
	s.env.Manifest.Files = nil
	if _, err := (pipe{}).Open(&rec, s.env); err == nil || errors.Is(err, unix.EINVAL) {
		t.Errorf("a pipe that is not in the image: %v", err)
	}
}

// TestPipeAsync: O_ASYNC is a status flag as any other; who gets the signal is the driver's part.
func TestPipeAsync(t *testing.T) {
	r, w := newPipe(t, 0, 65536, nil)
	_, err := unix.FcntlInt(uintptr(r), unix.F_SETFL, unix.O_ASYNC|unix.O_NONBLOCK)
	must(t, err)
	_, got := roundTrip(t, r, w)
	if flagsOf(t, got[0])&unix.O_ASYNC == 0 {
		t.Error("O_ASYNC is lost")
	}
}

func TestPipeOwner(t *testing.T) {
	r, w := newPipe(t, 0, 65536, nil)
	must(t, unix.Fchown(r, 1234, 1235))
	must(t, unix.Fchmod(r, 0o640))
	roundTrip(t, w, r) // compares uid and mode
}
