package ptrace

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// withTracer runs f on a tracer of its own.
func withTracer(t *testing.T, f func(tr *Tracer) error) {
	t.Helper()
	tr := NewTracer()
	defer tr.Close()
	if err := tr.Do(func() error { return f(tr) }); err != nil {
		t.Fatal(err)
	}
}

func TestTracerClose(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	tr := NewTracer()
	err := tr.Do(func() error {
		th, err := tr.Seize(cmd.Process.Pid, 0)
		if err != nil {
			return err
		}
		_, err = th.WaitStop(time.Now().Add(patience))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.Close()
	tr.Close()
	if err := tr.Do(func() error { return nil }); err != errClosed {
		t.Errorf("after Close: %v", err)
	}
	eventually(t, "it is let go", func() bool {
		by, _ := statusField(cmd.Process.Pid, "TracerPid")
		return by == "0"
	})
	checkAlive(t, cmd.Process.Pid)
}

func TestGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	eventually(t, "it is a zombie", func() bool {
		st, _ := readStat(pid)
		return st.state == 'Z'
	})
	withTracer(t, func(tr *Tracer) error {
		var gone *GoneError
		if _, err := tr.Seize(pid, 0); !errors.As(err, &gone) {
			t.Errorf("a zombie: %v", err)
		}
		cmd.Wait()
		if _, err := tr.Seize(pid, 0); !errors.As(err, &gone) || gone.TID != pid {
			t.Errorf("no process: %v", err)
		}
		return nil
	})
}

// A target that is killed in the freeze gives a GoneError wherever it is noticed.
func TestKilledWhileFrozen(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	withTracer(t, func(tr *Tracer) error {
		f, err := freeze(tr, cmd.Process.Pid)
		if err != nil {
			return err
		}
		if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
			return err
		}
		if err := batchOf(f, 1); err != nil {
			return err
		}
		if err := f.threads[0].Kill(); err != nil {
			return err
		}
		var gone *GoneError
		if _, err := f.r.Syscall(unix.SYS_GETPID); !errors.As(err, &gone) {
			t.Errorf("a call in a killed process: %v", err)
		}
		if err := f.r.Close(); err != nil {
			t.Errorf("close after the target was killed: %v", err)
		}
		return nil
	})
}

func TestTraced(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	withTracer(t, func(tr *Tracer) error {
		if _, err := tr.Seize(cmd.Process.Pid, 0); err != nil {
			return err
		}
		withTracer(t, func(second *Tracer) error {
			var traced *TracedError
			_, err := second.Seize(cmd.Process.Pid, 0)
			if !errors.As(err, &traced) || traced.By != os.Getpid() || traced.Comm != comm(os.Getpid()) {
				t.Errorf("a traced thread: %v", err)
			}
			return nil
		})
		return nil
	})
}

func TestVFork(t *testing.T) {
	cmd, _ := startReady(t, nil, "vfork")
	pid := cmd.Process.Pid
	eventually(t, "it waits for its child", func() bool {
		st, _ := readStat(pid)
		return st.state == 'D'
	})
	kids := children(pid, pid)
	tr := NewTracer()
	err := tr.Do(func() error {
		th, err := tr.Seize(pid, 0)
		if err != nil {
			return err
		}
		_, err = th.WaitStop(time.Now().Add(50 * time.Millisecond))
		return err
	})
	var late *TimeoutError
	if !errors.As(err, &late) || !late.VFork || !strings.Contains(err.Error(), "vfork") {
		t.Errorf("a vfork parent: %v", err)
	}
	tr.Close() // the only way to let go of it
	if by, _ := statusField(pid, "TracerPid"); by != "0" {
		t.Errorf("it is still traced by %s", by)
	}
	unix.Kill(kids[0], unix.SIGKILL)
	eventually(t, "the parent goes on", func() bool {
		st, _ := readStat(pid)
		return st.state == 'Z'
	})
}

func TestSeccomp(t *testing.T) {
	cmd, _ := startReady(t, nil, "filtered")
	pid := cmd.Process.Pid
	eventually(t, "the filter is there", func() bool {
		mode, _ := statusField(pid, "Seccomp")
		return mode == "2"
	})
	for range 10 {
		inFrozen(t, pid, func(f *frozen) error {
			filters, err := f.threads[0].SeccompFilters()
			if err != nil || len(filters) != 1 || len(filters[0].Insns) != 8*8 || filters[0].Flags != 0 {
				t.Errorf("filters %+v, %v", filters, err)
			}
			if err := batchOf(f, 3); err != nil { // sigaltstack is forbidden to it
				return err
			}
			s, err := f.r.Snapshot(time.Now().Add(patience))
			if err != nil {
				return err
			}
			return s.Close()
		})
		time.Sleep(time.Millisecond)
		checkAlive(t, pid)
	}
	checkUntouched(t, pid)
}

func TestSyscallUserDispatch(t *testing.T) {
	cmd, _ := startReady(t, nil, "dispatched")
	for range 20 {
		inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
			if err := batchOf(f, 3); err != nil {
				return err
			}
			s, err := f.r.Snapshot(time.Now().Add(patience))
			if err != nil {
				return err
			}
			if err := errors.Join(s.Close(), f.r.Leave()); err != nil {
				return err
			}
			if sud, err := f.threads[0].SUD(); err != nil || sud == nil {
				t.Errorf("syscall user dispatch %v, %v", sud, err)
			}
			return nil
		})
		time.Sleep(time.Millisecond)
		checkAlive(t, cmd.Process.Pid)
	}
	checkUntouched(t, cmd.Process.Pid)
}

func TestUnfiltered(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		if filters, err := f.threads[0].SeccompFilters(); err != nil || len(filters) != 0 {
			t.Errorf("filters %v, %v", filters, err)
		}
		if sud, err := f.threads[0].SUD(); err != nil || sud != nil {
			t.Errorf("syscall user dispatch %v, %v", sud, err)
		}
		if c := f.states[0].Rseq; c.Ptr == 0 || c.Size == 0 {
			t.Errorf("rseq %+v: glibc registers it", c)
		}
		return nil
	})
}
