package ptrace

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary also plays the helper processes of the tests.
func TestMain(m *testing.M) {
	switch os.Getenv("PTRACE_TEST_ROLE") {
	case "tracer":
		tracerMain()
	case "gotarget":
		goTargetMain()
	case "lender":
		lenderMain()
	}
	dir, err := os.MkdirTemp("", "ptrace")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// wholeSoak reports whether CKPTFS_SOAK asks for all of it.
func wholeSoak() bool {
	v := os.Getenv("CKPTFS_SOAK")
	return v != "" && v != "0"
}

// programs are the compiled targets.
var programs struct {
	sync.Mutex
	dir string
}

// patience is how long a test waits for what takes microseconds on an idle machine.
const patience = 30 * time.Second

// compile builds testdata/NAME.c with the flags, once for all tests.
func compile(t *testing.T, name string, flags ...string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	out := filepath.Join(programs.dir, name+strings.Join(flags, ""))
	if _, err := os.Stat(out); err == nil {
		return out
	}
	args := append([]string{"-O1", "-o", out, "testdata/" + name + ".c", "-lpthread"}, flags...)
	if b, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", name, err, b)
	}
	return out
}

// startTalking starts testdata/modes.c in a mode and returns it with its input and output.
func startTalking(t *testing.T, mode string) (*exec.Cmd, io.Writer, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(compile(t, "modes"), mode)
	in, out := talk(t, cmd)
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatalf("modes %s is not ready: %v", mode, err)
	}
	return cmd, in, out
}

// talk starts a command with pipes.
func talk(t *testing.T, cmd *exec.Cmd) (io.Writer, *bufio.Reader) {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return in, bufio.NewReader(out)
}

// startReady starts testdata/modes.c and returns it with the words of its first line.
func startReady(t *testing.T, attr *unix.SysProcAttr, mode string) (*exec.Cmd, []string) {
	t.Helper()
	cmd := exec.Command(compile(t, "modes"), mode)
	cmd.SysProcAttr = attr
	_, out := talk(t, cmd)
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatalf("modes %s is not ready: %v", mode, err)
	}
	return cmd, strings.Fields(line)
}

// checkAlive fails the test if a process has ended.
func checkAlive(t *testing.T, pid int) {
	t.Helper()
	if st, err := readStat(pid); err != nil || st.state == 'Z' {
		t.Fatalf("the target died (state %c, exit code %#x, %v)", st.state, st.exitCode, err)
	}
}

// eventually waits until f holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// frozen is a stopped process.
type frozen struct {
	pid     int
	threads []*Thread
	states  []*State
	r       *Remote
}

// freeze stops all threads of a process and captures them.
func freeze(t *Tracer, pid int) (*frozen, error) {
	f := &frozen{pid: pid}
	deadline := time.Now().Add(patience)
	seen := map[int]bool{}
	for again := true; again; {
		again = false
		tids, err := tasks(pid)
		if err != nil {
			return nil, err
		}
		for _, tid := range tids {
			if seen[tid] {
				continue
			}
			th, err := t.Seize(tid, 0)
			if err != nil {
				return nil, err
			}
			if _, err := th.WaitStop(deadline); err != nil {
				return nil, err
			}
			seen[tid], again = true, true
			f.threads = append(f.threads, th)
		}
	}
	var err error
	if f.r, err = NewRemote(pid); err != nil {
		return nil, err
	}
	for _, th := range f.threads {
		st, err := th.Capture(f.r.Mem())
		if err != nil {
			return nil, err
		}
		f.states = append(f.states, st)
	}
	return f, nil
}

// thaw puts all back and lets the process go.
func (f *frozen) thaw() error {
	if err := f.r.Close(); err != nil {
		return err
	}
	for _, th := range f.threads {
		if err := th.Detach(); err != nil {
			return err
		}
	}
	return nil
}

// inFrozen runs f on a stopped process, with its first thread entered, and lets it go.
func inFrozen(t *testing.T, pid int, f func(f *frozen) error) {
	t.Helper()
	tr := NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		fz, err := freeze(tr, pid)
		if err != nil {
			return err
		}
		if err := fz.r.Enter(fz.threads[0], fz.states[0]); err != nil {
			return err
		}
		if err := f(fz); err != nil {
			return fmt.Errorf("%w; then: %v", err, fz.thaw())
		}
		return fz.thaw()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// startBench starts an idle target for a benchmark.
func startBench(b *testing.B) *exec.Cmd {
	b.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	time.Sleep(20 * time.Millisecond)
	return cmd
}
