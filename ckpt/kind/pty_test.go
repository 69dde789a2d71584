package kind

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

// peer opens a slave of a master.
func peer(t *testing.T, master, flags int) int {
	t.Helper()
	fd, err := openPeer(master, flags)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func termiosOf(t *testing.T, fd int) *unix.Termios {
	t.Helper()
	tio, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	must(t, err)
	return tio
}

func setTermios(t *testing.T, fd int, change func(tio *unix.Termios)) {
	t.Helper()
	tio := termiosOf(t, fd)
	change(tio)
	must(t, ioctlPtr(fd, unix.TCSETS2, unsafe.Pointer(tio)))
}

func typeIn(t *testing.T, fd int, text string) {
	t.Helper()
	n, err := unix.Write(fd, []byte(text))
	if err != nil || n != len(text) {
		t.Fatalf("write: %d %v", n, err)
	}
}

// ttyReads is what the reads of a terminal give until there is nothing: each in the list.
func ttyReads(t *testing.T, fd int) (all []string) {
	t.Helper()
	flags := flagsOf(t, fd)
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(flags)|unix.O_NONBLOCK)
	must(t, err)
	buf := make([]byte, 32<<10)
	for len(all) < 100 {
		n, err := unix.Read(fd, buf)
		if err != nil {
			break
		}
		all = append(all, string(buf[:n]))
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(flags))
	must(t, err)
	return all
}

// ptyAgain takes ends of pseudoterminals through a checkpoint and closes the old ones before the restore.
func ptyAgain(t *testing.T, fds ...int) (*stage, []int) {
	t.Helper()
	s := newStage(t)
	s.add(fds...)
	s.scene.Still = true
	must(t, image.Refusals(s.check()))
	s.dump()
	gone(t, fds...)
	got, err := s.open()
	must(t, err)
	return s, got
}

// TestPTY: settings, number and window size come back, and both ends are connected.
func TestPTY(t *testing.T) {
	master, path := newTerminal(t)
	fds := []int{peer(t, master, unix.O_RDWR), open(t, path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK), master}
	setTermios(t, fds[0], func(tio *unix.Termios) {
		tio.Lflag &^= unix.ECHO | unix.ICANON
		tio.Cc[unix.VMIN], tio.Cc[unix.VTIME], tio.Cc[unix.VINTR] = 7, 3, 'x'
		tio.Iflag |= unix.IXANY
	})
	must(t, unix.IoctlSetWinsize(fds[0], unix.TIOCSWINSZ, &unix.Winsize{Row: 41, Col: 99, Xpixel: 5, Ypixel: 6}))
	must(t, unix.IoctlSetPointerInt(master, unix.TIOCPKT, 1))
	must(t, unix.IoctlSetInt(master, unix.TIOCEXCL, 0))
	must(t, unix.IoctlSetInt(fds[0], unix.TIOCEXCL, 0))
	must(t, unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 1))
	must(t, unix.Fchown(fds[0], 1234, 5))
	must(t, unix.Fchmod(fds[0], 0o620))
	want := *termiosOf(t, master)
	s, got := ptyAgain(t, fds...)
	if now := *termiosOf(t, got[2]); now != want {
		t.Errorf("settings %+v, were %+v", now, want)
	}
	if w, err := unix.IoctlGetWinsize(got[0], unix.TIOCGWINSZ); err != nil || *w != (unix.Winsize{Row: 41, Col: 99, Xpixel: 5, Ypixel: 6}) {
		t.Errorf("window %+v %v", w, err)
	}
	for _, x := range []struct {
		fd int
		nr uint
	}{{got[2], tiocgpkt}, {got[2], tiocgexcl}, {got[0], tiocgexcl}, {got[2], tiocgptlck}} {
		if n, err := unix.IoctlGetInt(x.fd, x.nr); err != nil || n != 1 {
			t.Errorf("ioctl %#x: %d %v", x.nr, n, err)
		}
	}
	for i, fd := range got {
		if now := flagsOf(t, fd); (now^int(s.env.Manifest.Files[i].Flags))&^meaningless != 0 {
			t.Errorf("flags %#o, were %#o", now, s.env.Manifest.Files[i].Flags)
		}
	}
	if link, _ := os.Readlink("/proc/self/fd/" + itoa(got[1])); link != path {
		t.Errorf("link %q, was %q", link, path)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(got[0], &st))
	if st.Uid != 1234 || st.Gid != 5 || st.Mode&0o777 != 0o620 {
		t.Errorf("owner %d %d, mode %#o", st.Uid, st.Gid, st.Mode)
	}
	must(t, unix.IoctlSetPointerInt(got[2], unix.TIOCPKT, 0))
	typeIn(t, got[0], "hello")
	if r := ttyReads(t, got[2]); !slices.Equal(r, []string{"hello"}) {
		t.Errorf("master reads %q", r)
	}
	gone(t, got[0], got[1])
	if _, err := unix.Read(got[2], make([]byte, 1)); err != unix.EIO {
		t.Errorf("read without a slave: %v", err)
	}
}

// TestPTYStates: nobody has opened the slave yet, or all have closed it.
func TestPTYStates(t *testing.T) {
	fresh, _ := newTerminal(t)
	closed, _ := newTerminal(t)
	fd, err := openPeer(closed, unix.O_RDWR)
	must(t, err)
	typeIn(t, fd, "last words")
	unix.Close(fd)
	s, got := ptyAgain(t, fresh, closed)
	if r, err := polled(got[0], unix.POLLIN); err != nil || r&(unix.POLLHUP|unix.POLLIN) != 0 {
		t.Errorf("fresh: %#x %v", r, err)
	}
	if r := ttyReads(t, got[1]); !slices.Equal(r, []string{"last words"}) {
		t.Errorf("closed: %q", r)
	}
	if _, err := unix.Read(got[1], make([]byte, 1)); err != unix.EIO {
		t.Errorf("closed: %v", err)
	}
	s.scene.Files = s.scene.Files[:1]
}

// TestPTYRefused: what cannot be kept.
func TestPTYRefused(t *testing.T) {
	master, path := newTerminal(t)
	slave := open(t, path, unix.O_RDWR|unix.O_NOCTTY)
	s := newStage(t)
	s.add(master, slave)
	s.scene.Still = true
	dump := func() error {
		var rec image.File
		return ptyKind{}.Dump(s.scene.Files[0], s.scene, &rec)
	}
	wants := func(words ...string) {
		t.Helper()
		err := dump()
		if err == nil {
			t.Fatalf("not refused: want %q", words)
		}
		wantWords(t, err.Error(), words...)
	}
	must(t, dump())
	must(t, unix.IoctlSetPointerInt(master, unix.TIOCPKT, 1))
	must(t, unix.IoctlSetInt(slave, unix.TCFLSH, unix.TCIOFLUSH))
	wants("status of packet mode (TIOCPKT)", "try again")
	ttyReads(t, master)
	must(t, dump())
	must(t, unix.IoctlSetPointerInt(master, unix.TIOCPKT, 0))
	must(t, unix.IoctlSetInt(slave, unix.TCXONC, unix.TCOOFF))
	wants("its output is stopped", "Ctrl-Q")
	must(t, unix.IoctlSetInt(slave, unix.TCXONC, unix.TCOON))
	s.scene.Files[1].Flags |= unix.O_ASYNC
	wants("O_ASYNC")
	s.scene.Files[1].Flags &^= unix.O_ASYNC
	typeIn(t, master, "x\n")
	s.outside[unix.O_RDONLY] = 4711
	wants("pid 4711 outside the tree has its slave")
	rdev := s.scene.Files[1].Stat.Rdev
	s.scene.Files[1].Stat.Rdev = 0
	wantFinding(t, s.check()[:1], image.Lose, "pid 4711 outside the tree has its slave "+path+" open")
	s.scene.Files[1].Stat.Rdev = rdev
	setTermios(t, slave, func(tio *unix.Termios) { tio.Lflag = 0 })
	delete(s.outside, unix.O_RDONLY)
	typeIn(t, master, strings.Repeat("x", 4090))
	polled(slave, unix.POLLIN)
	wants("bytes of input wait in " + path)
}

// TestPTYDiscipline: another line discipline (N_NULL, N_PPP) is refused.
func TestPTYDiscipline(t *testing.T) {
	master, path := newTerminal(t)
	slave := open(t, path, unix.O_RDWR|unix.O_NOCTTY)
	const nNull = 27
	if err := unix.IoctlSetPointerInt(slave, unix.TIOCSETD, nNull); err != nil {
		t.Skip(err)
	}
	s := newStage(t)
	s.add(master, slave)
	refused(t, s.check(), "line discipline 27", "only 0 (N_TTY) is kept")
}

// ownFile is another descriptor of fd as an os.File.
func ownFile(t *testing.T, fd int) *os.File {
	t.Helper()
	n, err := dup(fd)
	must(t, err)
	f := os.NewFile(uintptr(n), "ptmx")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestPTYMasterOutside: another process has the master, too.
func TestPTYMasterOutside(t *testing.T) {
	master, _ := newTerminal(t)
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{ownFile(t, master)}
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	s := newStage(t)
	s.add(master)
	refused(t, s.check(), "pid "+itoa(cmd.Process.Pid)+" outside the tree has this master")
}

// TestPTYTaken: the number of the terminal is in use by another process.
func TestPTYTaken(t *testing.T) {
	master, path := newTerminal(t)
	slave := open(t, path, unix.O_RDWR|unix.O_NOCTTY)
	s := newStage(t)
	s.add(master, slave)
	s.scene.Still = true
	s.dump()
	f := ownFile(t, master)
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	must(t, f.Close())
	gone(t, master, slave)
	_, err := s.open()
	if err == nil {
		t.Fatal("opened")
	}
	wantWords(t, err.Error(), path, itoa(cmd.Process.Pid), "--policy pty=renumber")
	s.env.Policy = policy.Set{"pty": "renumber"}
	s.env.Shared = map[string]any{}
	got, err := s.open()
	must(t, err)
	wantWords(t, strings.Join(s.warned, "\n"), path+" has the number")
	typeIn(t, got[0], "x\n")
	polled(got[1], unix.POLLIN)
	if r := ttyReads(t, got[1]); !slices.Equal(r, []string{"x\n"}) {
		t.Errorf("slave reads %q", r)
	}
}

// TestPTYHostile: records that no terminal can have had are refused before anything is opened.
func TestPTYHostile(t *testing.T) {
	master, path := newTerminal(t)
	slave := open(t, path, unix.O_RDWR|unix.O_NOCTTY)
	fresh := func() (*stage, *ptyRec) {
		s := newStage(t)
		s.add(master, slave)
		s.scene.Still = true
		s.dump()
		r := new(ptyRec)
		must(t, decodeRec(&s.env.Manifest.Files[0], r))
		return s, r
	}
	for name, c := range map[string]struct {
		spoil func(s *stage, r *ptyRec)
		words string
	}{
		"index":        {func(s *stage, r *ptyRec) { r.Index = 1 << 31 }, "the highest is"},
		"beyond limit": {func(s *stage, r *ptyRec) { r.Index = 1<<20 - 1 }, "no more than"},
		"settings":     {func(s *stage, r *ptyRec) { r.Termios = r.Termios[:7] }, "settings"},
		"locked bits":  {func(s *stage, r *ptyRec) { r.LockedBits = []byte{1} }, "settings"},
		"state":        {func(s *stage, r *ptyRec) { r.State = 9 }, "state 9"},
		"huge":         {func(s *stage, r *ptyRec) { r.Output = 1 << 31 }, "more than a terminal holds"},
		"huge input":   {func(s *stage, r *ptyRec) { r.Input = 5000 }, "more than a terminal holds"},
		"lines":        {func(s *stage, r *ptyRec) { r.Lines = []uint32{1 << 31, 1 << 31} }, "its lines have"},
		"no text":      {func(s *stage, r *ptyRec) { r.Output = 3 }, "missing"},
		"short text":   {func(s *stage, r *ptyRec) { r.Output = 3; s.env.Manifest.Files[0].Blob = s.scene.Blob([]byte("x")) }, "the image holds 1"},
		"fresh text":   {func(s *stage, r *ptyRec) { r.Output, r.State = 1, ptyFresh }, "nobody can have written"},
		"path":         {func(s *stage, r *ptyRec) { s.env.Manifest.Files[0].Path = "/dev/sda" }, "was opened as"},
		"two masters": {func(s *stage, r *ptyRec) {
			s.env.Manifest.Files = append(s.env.Manifest.Files, s.env.Manifest.Files[0])
		}, "two masters"},
		"absurd values": {func(s *stage, r *ptyRec) { copy(r.Termios, bytes.Repeat([]byte{0xff}, 44)) }, "does not take its settings"},
		"not a master": {func(s *stage, r *ptyRec) {
			var slave terminalRec
			must(t, decodeRec(&s.env.Manifest.Files[1], &slave))
			slave.PTY = 2
			must(t, encodeRec(&s.env.Manifest.Files[1], &slave))
		}, "is not its master"},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := fresh()
			c.spoil(s, r)
			must(t, encodeRec(&s.env.Manifest.Files[0], r))
			if name == "two masters" {
				s.env.Manifest.Files[2] = s.env.Manifest.Files[0]
			}
			s.env.Policy = policy.Set{"pty": "renumber"}
			_, err := s.open()
			if err == nil {
				t.Fatal("opened")
			}
			wantWords(t, err.Error(), c.words)
		})
	}
}
