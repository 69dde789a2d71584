package kind

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// newTerminal makes a pseudoterminal with a number that is not the lowest: whoever wants one meanwhile, in other
// tests, gets a lower one.
func newTerminal(t *testing.T) (master int, path string) {
	t.Helper()
	for range 8 {
		below, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(below)
	}
	master = open(t, "/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	must(t, unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	must(t, err)
	return master, "/dev/pts/" + itoa(int(n))
}

func TestTerminalReattached(t *testing.T) {
	master, path := newTerminal(t)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 { // what openpty(3) of glibc uses
		t.Fatal(errno)
	}
	defer unix.Close(int(peer))
	fds := []int{open(t, path, unix.O_RDWR|unix.O_NOCTTY), open(t, path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK), int(peer)}
	s := newStage(t)
	s.add(fds...)
	all := s.check()
	if len(all) != 3 {
		t.Fatal(all)
	}
	wantFinding(t, all[:1], image.Lose, path, "reattached if it still exists")
	recs := s.dump()
	got, err := s.open()
	must(t, err)
	for i, fd := range got {
		if link, _ := os.Readlink("/proc/self/fd/" + itoa(fd)); link != path {
			t.Errorf("link %q", link)
		}
		if now := uint32(flagsOf(t, fd)); (now^recs[i].Flags)&^meaningless != 0 {
			t.Errorf("flags %#o, were %#o", now, recs[i].Flags)
		}
	}
	wantWords(t, strings.Join(s.warned, "\n"), "still exists and is used again")
}

func TestTerminalGone(t *testing.T) {
	for _, how := range []string{"closed", "another user's"} {
		t.Run(how, func(t *testing.T) {
			master, path := newTerminal(t)
			fds := []int{open(t, path, unix.O_RDWR|unix.O_NOCTTY), open(t, path, unix.O_RDONLY|unix.O_NOCTTY), open(t, path, unix.O_WRONLY|unix.O_NOCTTY)}
			s := newStage(t)
			s.add(fds...)
			s.dump()
			if how == "closed" {
				gone(t, append(fds, master)...)
			} else {
				must(t, os.Chown(path, 1234, -1))
			}
			got, err := s.open()
			must(t, err)
			buf := make([]byte, 9)
			write := func(fd int, text string) {
				t.Helper()
				_, err := unix.Write(fd, []byte(text))
				must(t, err)
			}
			write(got[0], "prompt$ ")
			write(got[2], "output of another process\n")
			// What others wrote is never read as input.
			for _, fd := range got[:2] {
				if n, err := unix.Read(fd, buf); n != 0 || err != nil {
					t.Errorf("read %q %v, want end of file", buf[:max(n, 0)], err)
				}
			}
			write(got[0], "bye")
			if s.output() != "prompt$ output of another process\nbye" {
				t.Errorf("output %q", s.output())
			}
			ep := newEpoll(t)
			watch(t, ep, got[1], unix.EPOLLIN, 0) // /dev/null could not be watched
			wantWords(t, strings.Join(s.warned, "\n"), "is gone or belongs to someone else")
		})
	}
}

// TestTerminalHungUp: a terminal that was hung up comes back as one, whatever has its number since.
func TestTerminalHungUp(t *testing.T) {
	master, path := newTerminal(t)
	fds := []int{open(t, path, unix.O_RDWR|unix.O_NOCTTY), open(t, path, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK)}
	gone(t, master)
	s := newStage(t)
	s.add(fds...)
	if all := s.check(); len(all) != 0 {
		t.Error(all)
	}
	s.dump()
	got, err := s.open()
	must(t, err)
	for i, fd := range got {
		if n, err := unix.Write(fd, []byte("x")); err != unix.EIO {
			t.Errorf("write: %d %v", n, err)
		}
		if now := flagsOf(t, fd); (now^flagsOf(t, fds[i]))&^meaningless != 0 {
			t.Errorf("flags %#o", now)
		}
	}
	if n, err := unix.Read(got[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read: %d %v", n, err)
	}
}

// TestTerminalControlling: /dev/tty stands for the terminal of its session.
func TestTerminalControlling(t *testing.T) {
	_, path := newTerminal(t)
	slave, err := os.OpenFile(path, unix.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer slave.Close()
	cmd := exec.Command("sh", "-c", "exec </dev/tty; echo ready >&2; exec sleep 60")
	cmd.Stdin = slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	_, err = stderr.Read(make([]byte, 9))
	must(t, err)
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	must(t, err)
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 0, 0)
	must(t, err)
	defer unix.Close(fd)
	s := newStage(t)
	f := s.add(fd)[0]
	if f.Link != "/dev/tty" {
		t.Fatalf("link %q", f.Link)
	}
	if rec := s.dump()[0]; rec.Path != path {
		t.Errorf("path %q, want %q", rec.Path, path)
	}
	got, err := s.open()
	must(t, err)
	if link, _ := os.Readlink("/proc/self/fd/" + itoa(got[0])); link != path {
		t.Errorf("link %q", link)
	}
}

func TestTerminalNumbers(t *testing.T) {
	for _, d := range [][2]uint32{{4, 1}, {4, 64}, {5, 0}, {5, 1}, {136, 0}, {143, 9}, {188, 0}, {204, 64}} {
		if !ttyDevice(unix.Mkdev(d[0], d[1])) {
			t.Errorf("%d:%d is a terminal", d[0], d[1])
		}
	}
	for _, d := range [][2]uint32{{1, 3}, {7, 0}, {10, 229}, {195, 0}} {
		if ttyDevice(unix.Mkdev(d[0], d[1])) {
			t.Errorf("%d:%d is no terminal", d[0], d[1])
		}
	}
}
