package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// Programs that hold terminals: the tests talk to them by their usual clients, in terminals of the
// tests, that are not there while a checkpoint is taken.

// screen is what a client of a terminal has shown so far.
type screen struct {
	t    *testing.T
	w    interface{ Write(b []byte) (int, error) }
	end  func()
	lock sync.Mutex
	text strings.Builder
}

func (s *screen) take(r interface{ Read(b []byte) (int, error) }) {
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		s.lock.Lock()
		s.text.Write(b[:n])
		s.lock.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) shown() string {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.text.String()
}

// types sends keys and waits until the text shows up that comes of them; without keys it may have come before.
func (s *screen) types(keys, want string) {
	s.t.Helper()
	before := len(s.shown())
	if keys == "" {
		before = 0
	}
	if _, err := s.w.Write([]byte(keys)); err != nil {
		s.t.Fatal(err)
	}
	if want == "" {
		return
	}
	end := time.Now().Add(20 * time.Second)
	for !strings.Contains(s.shown()[before:], want) {
		if time.Now().After(end) {
			s.t.Fatalf("after %q there is no %q in %q, after %q", keys, want, s.shown()[before:], s.shown()[:before])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// attachClient starts a client such as tmux attach in a terminal of the test.
func attachClient(t *testing.T, env []string, argv ...string) *screen {
	t.Helper()
	master, slave := openPTY(t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100}); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(int(master.Fd()), true)
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(append(os.Environ(), "TERM=xterm"), env...)
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	harness.Background(t, c)
	s := &screen{t: t, w: master}
	pid := c.Process.Pid
	s.end = func() {
		harness.Eventually(t, "the client is gone", func() bool { st := harness.State(pid); return st == 0 || st == 'Z' })
	}
	go s.take(master)
	return s
}

// dial connects to ptyhost.
func dial(t *testing.T, sock string) *screen {
	t.Helper()
	var c net.Conn
	harness.Eventually(t, "ptyhost listens", func() (ok bool) {
		var err error
		c, err = net.Dial("unix", sock)
		return err == nil
	})
	s := &screen{t: t, w: c, end: func() { c.Close() }}
	go s.take(c)
	return s
}

// clientless waits until a checkpoint would no more meet a connection to a client.
func clientless(t *testing.T, r *harness.Program) {
	t.Helper()
	harness.Eventually(t, "no client is connected", func() bool {
		return !strings.Contains(harness.Run(t, harness.Binary(), "explain", fmt.Sprint(r.PID)).Stdout, "connected to")
	})
}

// carried takes a tree without clients through a checkpoint that it survives and one that it does not.
func carried(t *testing.T, r *harness.Program, between func()) {
	t.Helper()
	clientless(t, r)
	r.Dump()
	r.Alive()
	between()
	clientless(t, r)
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
}

// hosted runs a program in a terminal of ptyhost, takes it through two generations, and has use talk to it.
func hosted(t *testing.T, argv []string, use func(s *screen, round int)) {
	dir := harness.TempDir(t)
	sock := filepath.Join(dir, "sock")
	r := harness.StartCommand(t, dir, append([]string{harness.Tool(t, "env"), "TERM=xterm", "HOME=" + dir, "PS1=prompt> ", "INPUTRC=/dev/null", harness.Fixture(t, "ptyhost"), sock}, argv...)...)
	talk := func(round int) {
		s := dial(t, sock)
		defer s.end()
		use(s, round)
	}
	talk(0)
	for round := 1; round <= 3; round += 2 {
		carried(t, r, func() { talk(round) })
		talk(round + 1)
	}
	r.Kill()
}

// TestBashInTerminal stops a job, takes the shell away, and gets the job on in the foreground again.
func TestBashInTerminal(t *testing.T) {
	bash := []string{harness.Tool(t, "bash"), "--norc", "--noprofile", "-i"}
	for name, argv := range map[string][]string{"bash": bash, "script": {harness.Tool(t, "script"), "-q", "-c", strings.Join(bash, " "), "/dev/null"}} {
		t.Run(name, func(t *testing.T) {
			hosted(t, argv, func(s *screen, round int) {
				if round > 0 {
					s.types("jobs\r", "Stopped")
					s.types("fg\r", "cat")
					s.types(fmt.Sprintf("round %d\r", round), fmt.Sprintf("round %d\r\nround %d", round, round))
					s.types("\x1a", "Stopped")
					s.types("kill %1; sleep 0.1; fg\r", "Terminated")
				}
				s.types("echo $((40+2)) $(tty)\r", "42 ")
				s.types("cat\r", "cat")
				s.types("hello\r", "hello\r\nhello")
				s.types("\x1a", "Stopped")
				s.types("echo half", "half") // and is left at that, in the line editor
				s.types("\x15", "")
			})
		})
	}
}

// TestVimInTerminal edits on after each restore.
func TestVimInTerminal(t *testing.T) {
	file := filepath.Join(harness.TempDir(t), "text")
	hosted(t, []string{harness.Tool(t, "vim"), "-u", "NONE", "-N", file}, func(s *screen, round int) {
		s.types(fmt.Sprintf("oline %d\x1b", round), fmt.Sprintf("line %d", round))
		s.types(":w\r", "written")
		want := ""
		for i := range round + 1 {
			want += fmt.Sprintf("\nline %d", i)
		}
		harness.Eventually(t, "vim has written", func() bool { b, _ := os.ReadFile(file); return string(b) == want+"\n" })
	})
}

// TestPythonSpawn: python's pty.spawn between two terminals.
func TestPythonSpawn(t *testing.T) {
	python := harness.Python(t)
	hosted(t, []string{python, "-c", fmt.Sprintf("import pty; pty.spawn([%q, '-q', '-i'])", python)}, func(s *screen, round int) {
		if round == 0 {
			s.types("", ">>> ")
			s.types("n = 100; import os\r", ">>> ")
		}
		s.types(fmt.Sprintf("n += 1; print('n is', n, os.isatty(0), %d)\r", round), fmt.Sprintf("n is %d True %d", 101+round, round))
		s.types("if n:\r", "... ")
		s.types("  print('deep')\r\r", "deep\r\n")
	})
}

// TestTmux takes a server with three shells and a vim away, and a client attaches again.
func TestTmux(t *testing.T) {
	dir := harness.TempDir(t)
	file := filepath.Join(dir, "text")
	tmux := func(args ...string) []string {
		return append([]string{harness.Tool(t, "tmux"), "-f", "/dev/null", "-S", filepath.Join(dir, "sock")}, args...)
	}
	r := harness.StartCommand(t, dir, append([]string{harness.Tool(t, "env"), "TERM=xterm", "HOME=" + dir, "SHELL=/bin/bash"}, tmux("-D")...)...)
	harness.Eventually(t, "the server listens", func() bool { _, err := os.Stat(filepath.Join(dir, "sock")); return err == nil })
	bash := "bash --norc --noprofile -i"
	harness.Must(t, tmux("new-session", "-d", "-s", "s", "-x", "100", "-y", "29", bash)...)
	harness.Must(t, tmux("split-window", "-t", "s", bash)...)
	harness.Must(t, tmux("new-window", "-t", "s", bash)...)
	harness.Must(t, tmux("new-window", "-t", "s", "vim -u NONE -N "+file)...)
	harness.Eventually(t, "vim runs", func() bool {
		return strings.Contains(harness.Run(t, tmux("list-panes", "-a", "-F", "#{pane_current_command}")...).Stdout, "vim")
	})
	use := func(round int) {
		s := attachClient(t, nil, tmux("attach", "-t", "s")...)
		s.types("", "[s]") // it takes keys now
		harness.Must(t, tmux("select-window", "-t", "s:2")...)
		s.types("\x1b", "")
		s.types(fmt.Sprintf("oline %d\x1b:w\r", round), "written")
		harness.Must(t, tmux("select-window", "-t", "s:0")...)
		for pane := range 2 {
			s.types(fmt.Sprintf("echo pane $((%d00+%d))\r", pane+1, round), fmt.Sprint("pane ", (pane+1)*100+round))
			harness.Must(t, tmux("select-pane", "-t", "s:0.+")...)
		}
		harness.Must(t, tmux("select-window", "-t", "s:1")...)
		s.types("x=$((x+1)); echo x is $x\r", fmt.Sprint("x is ", round+1))
		harness.Must(t, tmux("detach-client", "-s", "s")...)
		s.types("", "detached")
		s.end()
	}
	use(0)
	for round := 1; round <= 3; round += 2 {
		carried(t, r, func() { use(round) })
		use(round + 1)
	}
	b, _ := os.ReadFile(file)
	if want := "\nline 0\nline 1\nline 2\nline 3\nline 4\n"; string(b) != want {
		t.Errorf("vim wrote %q, not %q", b, want)
	}
	r.Kill()
}

// TestScreen does the same with screen(1).
func TestScreen(t *testing.T) {
	dir := harness.TempDir(t)
	sockets := filepath.Join(dir, "screens")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	env := []string{"SCREENDIR=" + sockets, "HOME=" + dir, "PS1=prompt> "}
	r := harness.StartCommand(t, dir, append(append([]string{harness.Tool(t, "env"), "TERM=xterm"}, env...),
		harness.Tool(t, "screen"), "-D", "-m", "-S", "s", "bash", "--norc", "--noprofile", "-i")...)
	harness.Eventually(t, "screen listens", func() bool { l, err := os.ReadDir(sockets); return err == nil && len(l) > 0 })
	use := func(round int) {
		s := attachClient(t, env, harness.Tool(t, "screen"), "-r", "s")
		s.types("\r", "prompt>")
		s.types("x=$((x+1)); echo x is $x\r", fmt.Sprint("x is ", round+1))
		s.types("\x01d", "detached")
		s.end()
	}
	use(0)
	for round := 1; round <= 3; round += 2 {
		carried(t, r, func() { use(round) })
		use(round + 1)
	}
	r.Kill()
}

// TestPTYTaken: the number of a terminal is in use by somebody else at the restore.
func TestPTYTaken(t *testing.T) {
	r := harness.Start(t, "pty", "taken")
	image := r.Dump()
	r.Kill()
	held := ""
	for range 50 { // whichever number it had, it is taken then
		m, _ := openPTY(t)
		held += fmt.Sprint(m.Name(), " ")
	}
	got := harness.Run(t, harness.Binary(), "restore", image)
	harness.Say(t, "restore", got.Stdout+got.Stderr, "it was pseudoterminal", fmt.Sprint("pid ", os.Getpid()), "--policy pty=renumber")
	if got.Code == 0 {
		t.Errorf("restored beside %s", held)
	}
	r.Restore(image, "--policy", "pty=renumber")
	r.Pass(true)
}
