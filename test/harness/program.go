package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Program is one running test program and all that it starts, before a restore and after it.
type Program struct {
	PID int    // of the root of its tree; a restore brings it back
	Dir string // its working directory

	t      testing.TB
	id     string
	result string // path
	goFile string
	exited atomic.Bool // our direct child has ended; says nothing after a restore
	status atomic.Int32
	done   sync.WaitGroup
	second bool // went through a restore: the first exit status no longer counts
}

var serial atomic.Int64

// Start starts a fixture by the contract of test/progs/prog.h and returns when it is ready.
func Start(t testing.TB, name string, args ...string) *Program {
	t.Helper()
	dir := TempDir(t)
	args = append([]string{join(dir, "ready"), join(dir, "result"), join(dir, "go")}, args...)
	p := StartCommand(t, dir, command(t, name, args)...)
	p.WaitReady()
	return p
}

// StartCommand starts any command in a session of its own, with /dev/null as its input and
// the file "out" in dir as its output, and does not wait for it to be ready.
func StartCommand(t testing.TB, dir string, argv ...string) *Program {
	t.Helper()
	out, err := os.OpenFile(join(dir, "out"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdout, c.Stderr = out, out
	return StartWith(t, dir, c)
}

// StartWith is StartCommand for a command that has its own input and output, and its own
// session if it says so.
func StartWith(t testing.TB, dir string, c *exec.Cmd) *Program {
	t.Helper()
	id := fmt.Sprint(serial.Add(1))
	c.Dir = dir
	c.Env = append(os.Environ(), marker+"="+run.base+"/"+id)
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := start(c); err != nil {
		t.Fatal(err)
	}
	p := &Program{PID: c.Process.Pid, Dir: dir, t: t, id: id, result: join(dir, "result"), goFile: join(dir, "go")}
	forget(p.PID)
	p.done.Go(func() {
		wait(c)
		p.status.Store(int32(c.ProcessState.Sys().(syscall.WaitStatus)))
		p.exited.Store(true)
	})
	t.Cleanup(func() {
		if err := p.kill(); err != nil {
			t.Error(err)
		}
		p.done.Wait()
	})
	return p
}

// WaitReady waits until the program has set up its state.
func (p *Program) WaitReady() {
	p.t.Helper()
	p.WaitFile("ready")
}

// WaitFile waits for a file that the program makes in its directory.
func (p *Program) WaitFile(name string) {
	p.t.Helper()
	if !until(func() bool { return exists(join(p.Dir, name)) || exists(p.result) || p.exited.Load() }) || !exists(join(p.Dir, name)) {
		p.t.Fatalf("the program made no file %q: %s", name, p.said())
	}
}

// Tree lists the pids of the program's processes, zombies too, the root first.
func (p *Program) Tree() []int { return descendants(p.PID) }

// everything lists what came of the program, also what left its tree.
func (p *Program) everything() []int {
	all := marked(p.id)
	for _, m := range slices.Clone(all) {
		all = append(all, descendants(m)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// kill ends everything that came of the program and waits until no pid of it is in use.
func (p *Program) kill() error {
	seen := map[int]bool{}
	return killAll(func() []int {
		for _, m := range p.everything() {
			seen[m] = true
		}
		var all []int
		for m := range seen {
			all = append(all, m)
		}
		return all
	})
}

// Kill kills the whole tree with SIGKILL; when it returns, all its pids are free.
func (p *Program) Kill() {
	p.t.Helper()
	if err := p.kill(); err != nil {
		p.t.Fatal(err)
	}
}

// WaitGone waits until no process of the program is left.
func (p *Program) WaitGone() {
	p.t.Helper()
	var last []int
	if !until(func() bool { last = p.everything(); return len(last) == 0 && !Exists(p.PID) }) {
		p.t.Fatalf("still there: pid %d or %v: %s", p.PID, last, p.said())
	}
}

// Alive fails the test if the program has ended or has reported a failure.
func (p *Program) Alive() {
	p.t.Helper()
	if s := State(p.PID); s == 0 || s == 'Z' || s == 'X' {
		p.t.Fatalf("pid %d is gone: %s", p.PID, p.said())
	}
	if exists(p.result) {
		p.t.Fatalf("pid %d has ended early: %s", p.PID, p.said())
	}
}

// Pass tells the program to assert on itself and waits for "ok". restored says whether it
// went through a restore; what the program may then observe differs.
func (p *Program) Pass(restored bool) string {
	p.t.Helper()
	word := "plain\n"
	if restored {
		word = "restored\n"
	}
	if err := os.WriteFile(p.goFile+".tmp", []byte(word), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.goFile+".tmp", p.goFile); err != nil {
		p.t.Fatal(err)
	}
	return p.Finish()
}

// Finish waits for the program's result, which must be "ok", and for its end. It returns what
// stands behind the "ok".
func (p *Program) Finish() string {
	p.t.Helper()
	var b []byte
	if !until(func() bool { b, _ = os.ReadFile(p.result); return len(b) > 0 || !Exists(p.PID) }) {
		p.t.Fatalf("no result after %v: %s", patience, p.said())
	}
	b, err := os.ReadFile(p.result) // it may have come just before the end
	if err != nil {
		p.t.Fatalf("the program ended without a result: %s", p.said())
	}
	said, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "ok")
	if !ok {
		p.t.Fatalf("the program says: %s", p.said())
	}
	p.WaitGone()
	if status, known := p.exitStatus(); known && status != 0 {
		p.t.Fatalf("the program passed, but its exit status is %#x", int(status))
	}
	return strings.TrimSpace(said)
}

func (p *Program) exitStatus() (unix.WaitStatus, bool) {
	if s, ok := orphan(p.PID); ok {
		return s, true
	}
	if p.second {
		return 0, false
	}
	p.done.Wait()
	return unix.WaitStatus(p.status.Load()), true
}

// Again forgets the results of a first run, before a restore of an earlier moment.
func (p *Program) Again() {
	p.second = true
	os.Remove(p.result)
	os.Remove(p.goFile)
	forget(p.PID)
}

// said is what is known of the program's fate, for the report of a failure.
func (p *Program) said() string {
	result, _ := os.ReadFile(p.result)
	out, _ := os.ReadFile(join(p.Dir, "out"))
	var b bytes.Buffer
	fmt.Fprintf(&b, "state %q, result %q, output %q", State(p.PID), result, tail(out))
	if p.exited.Load() {
		fmt.Fprintf(&b, ", first exit status %#x", p.status.Load())
	}
	if s, ok := orphan(p.PID); ok {
		fmt.Fprintf(&b, ", exit status %#x", int(s))
	}
	return b.String()
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
