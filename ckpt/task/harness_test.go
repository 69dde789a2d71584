package task

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
)

// fixture is testdata/target.c, compiled once for all tests.
var fixture = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ckpt-task")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "target")
	out, err := exec.Command("gcc", "-Wall", "-O1", "-pthread", "-o", bin, "testdata/target.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := fixture(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// start runs the fixture with some pieces of state set, and returns its pid and what it
// printed before "ready".
func start(t *testing.T, pieces ...string) (pid int, lines []string) {
	t.Helper()
	bin, err := fixture()
	if err != nil {
		t.Fatal(err)
	}
	return startCmd(t, exec.Command(bin, pieces...))
}

func startCmd(t *testing.T, cmd *exec.Cmd) (pid int, lines []string) {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startLocked(t, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed: its status says nothing
	})
	for s := bufio.NewScanner(out); s.Scan(); {
		if s.Text() == "ready" {
			return cmd.Process.Pid, lines
		}
		lines = append(lines, s.Text())
	}
	t.Fatal("the fixture ended early")
	return 0, nil
}

// startLocked starts a command from a thread that lives as long as the test: a parent-death
// signal comes when the thread that forked ends.
func startLocked(t *testing.T, cmd *exec.Cmd) error {
	started, end := make(chan error), make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-end
	}()
	return <-started
}

// stopped is a process all of whose threads are seized.
type stopped struct {
	pid     int
	threads []*ptrace.Thread
	states  []*ptrace.State
	remote  *ptrace.Remote
}

// freeze seizes a process, calls f in the tracer, and lets it go.
func freeze(t *testing.T, pid int, f func(s *stopped) error) error {
	t.Helper()
	tr := ptrace.NewTracer()
	defer tr.Close()
	return tr.Do(func() (err error) {
		s := &stopped{pid: pid}
		if s.remote, err = ptrace.NewRemote(pid); err != nil {
			return err
		}
		tids, err := threads(pid)
		if err != nil {
			return err
		}
		for _, tid := range tids {
			th, err := tr.Seize(tid, 0)
			if err != nil {
				return err
			}
			if _, err := th.WaitStop(time.Now().Add(30 * time.Second)); err != nil {
				return err
			}
			st, err := th.Capture(s.remote.Mem())
			if err != nil {
				return err
			}
			s.threads, s.states = append(s.threads, th), append(s.states, st)
		}
		err = f(s)
		err = errors.Join(err, s.remote.Close())
		for _, th := range s.threads {
			err = errors.Join(err, th.Detach())
		}
		return err
	})
}

// batch runs one batch in thread i.
func (s *stopped) batch(i int, f func(b *ptrace.Batch)) (err error) {
	if err := s.remote.Enter(s.threads[i], s.states[i]); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remote.Leave()) }()
	b, err := s.remote.NewBatch()
	if err != nil {
		return err
	}
	f(b)
	return b.Run()
}

// everything is all that this package reads of one process.
type everything struct {
	Task    image.Task
	MM      image.MM
	Sighand image.Sighand
	FS      image.FS
}

// readAll reads a process as a checkpoint does.
func readAll(t *testing.T, pid int) (*everything, error) {
	t.Helper()
	e := &everything{}
	return e, freeze(t, pid, e.read)
}

func (e *everything) read(s *stopped) (err error) {
	status, err := readStatus(s.pid, 0)
	if err != nil {
		return err
	}
	e.Task.PID, e.Task.State = int32(s.pid), image.TaskRunning
	if err := ReadTaskOutside(s.pid, &e.Task, &e.MM); err != nil {
		return err
	}
	if e.FS, _, err = ReadFS(s.pid, 0, nil); err != nil {
		return err
	}
	for i, th := range s.threads {
		it := image.Thread{}
		if err := ReadThreadOutside(s.pid, th.TID, &it, nil); err != nil {
			return err
		}
		if err := ReadTraced(th, s.states[i], &it); err != nil {
			return err
		}
		e.Task.Threads = append(e.Task.Threads, it)
	}
	b, err := quickread.File(taskPath(s.pid, 0, "timers"))
	if err != nil {
		return err
	}
	timers, err := procfs.ParseTimers(b)
	if err != nil {
		return err
	}
	since := time.Now()
	for i := range s.threads {
		var done []func() error
		err := s.batch(i, func(b *ptrace.Batch) {
			done = append(done, ReadThreadInside(b, &e.Task.Threads[i]))
			if i == 0 {
				done = append(done, ReadTaskInside(b, status, timers, &e.Task, &e.MM, &e.Sighand))
			}
		})
		if err != nil {
			return err
		}
		// While the scratch memory is there, as a driver does it.
		for _, f := range done {
			if err := f(); err != nil {
				return err
			}
		}
	}
	return ReadPending(s.threads[0], &e.Task, since)
}

// noWarning fails the test on any warning.
func noWarning(t *testing.T) func(string) {
	return func(s string) { t.Errorf("unexpected warning: %s", s) }
}

// write gives all of e to another, fresh process of one thread, as a restore does.
func (e *everything) write(t *testing.T, pid int) error {
	t.Helper()
	own := e.Task
	own.PID, own.SID = int32(pid), int32(pid)
	own.Threads = append([]image.Thread(nil), e.Task.Threads...)
	th := &own.Threads[0]
	th.TID = int32(pid)
	return freeze(t, pid, func(s *stopped) error {
		steps := []func() error{
			func() error { return CheckRestore(&own, &e.MM) },
			func() error {
				return s.batch(0, func(b *ptrace.Batch) {
					b.Call(syscall.SYS_SETSID).Label("setsid")
					WriteSighand(b, &e.Sighand)
					WriteFS(b, &e.FS, e.FS.Cwd)
					WriteMM(b, &e.MM, -1)
					th.Rseq = image.Rseq{} // the fixture's libc has registered its own already
					WriteThread(b, th)
				})
			},
			func() error { return WriteTaskOutside(pid, &own, &e.MM, noWarning(t)) },
			func() error { return WriteThreadOutside(pid, th, noWarning(t)) },
			func() error { return s.batch(0, func(b *ptrace.Batch) { WriteCreds(b, th) }) },
			func() error { return VerifyCreds(pid, &th.Creds) },
			func() error { return s.batch(0, func(b *ptrace.Batch) { WriteLast(b, &own, th, &e.MM, true) }) },
			func() error {
				return s.entered(func() error { return WriteUrgent(&slowProcess{s.remote, s.pid, s.states[0].Regs.Rsp}, &own, th, true) })
			},
		}
		for i, f := range steps {
			if err := f(); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
		s.states[0].SigMask = th.SigMask // the registers stay those of the fresh process
		return s.threads[0].SetSigMask(th.SigMask)
	})
}

func (s *stopped) entered(f func() error) (err error) {
	if err := s.remote.Enter(s.threads[0], s.states[0]); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remote.Leave()) }()
	return f()
}

// slowProcess puts bytes far below the stack of a sleeping process, which is free.
type slowProcess struct {
	*ptrace.Remote
	pid int
	rsp uint64
}

func (p *slowProcess) Put(b []byte) (uint64, error) {
	f, err := os.OpenFile(taskPath(p.pid, 0, "mem"), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	addr := (p.rsp - 4096) &^ 15
	_, err = f.WriteAt(b, int64(addr))
	return addr, err
}

// check returns the findings about a process, as text.
func check(t *testing.T, pid int) []string {
	t.Helper()
	var all []string
	if err := Check(pid, func(f image.Finding) { all = append(all, f.String()) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// one fails the test unless there is exactly one text and it holds all words.
func one(t *testing.T, all []string, words ...string) {
	t.Helper()
	if len(all) != 1 {
		t.Fatalf("%d findings, want 1:\n%s", len(all), strings.Join(all, "\n"))
	}
	for _, w := range words {
		if !strings.Contains(all[0], w) {
			t.Errorf("%q does not say %q", all[0], w)
		}
	}
}
