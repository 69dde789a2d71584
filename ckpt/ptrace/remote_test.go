package ptrace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRemoteSyscall(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		if v, err := f.r.Syscall(unix.SYS_GETPID); err != nil || int(v) != cmd.Process.Pid {
			t.Errorf("getpid: %d, %v", v, err)
		}
		if _, err := f.r.Syscall(unix.SYS_CLOSE, 999); err != unix.EBADF {
			t.Errorf("close: %v, want a plain EBADF", err)
		}
		if v, err := f.r.Syscall(unix.SYS_LSEEK, 0, ^uint64(0), 99); err != unix.EINVAL {
			t.Errorf("lseek: %d, %v", v, err)
		}
		addr, err := f.r.Syscall(unix.SYS_MMAP, 0, 8192, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
		if err != nil {
			t.Errorf("mmap with six arguments: %v", err)
		}
		if _, err := f.r.Syscall(unix.SYS_MUNMAP, addr, 8192); err != nil {
			t.Errorf("munmap: %v", err)
		}
		return nil
	})
	checkAlive(t, cmd.Process.Pid)
	checkUntouched(t, cmd.Process.Pid)
}

// What a thread has must be the same after calls of every sort, in each thread.
func TestLeaveRestores(t *testing.T) {
	s := startTarget(t, compile(t, "regs"), "locks")
	pid := s.cmd.Process.Pid
	eventually(t, "all its threads have their memory", func() bool { return len(s.read()) == 8 })
	for range 20 {
		before, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			t.Fatal(err)
		}
		tr := NewTracer()
		err = tr.Do(func() error {
			f, err := freeze(tr, pid)
			if err != nil {
				return err
			}
			for i, th := range f.threads {
				alt := altStack(t, f, i)
				if err := errors.Join(f.r.Enter(th, f.states[i]), batchOf(f, 5)); err != nil {
					return err
				}
				if i == 0 {
					snap, err := f.r.Snapshot(time.Now().Add(patience))
					if err != nil {
						return err
					}
					if err := snap.Close(); err != nil {
						return err
					}
				}
				if err := f.r.Leave(); err != nil {
					return err
				}
				checkState(t, f, i)
				if got := altStack(t, f, i); !bytes.Equal(got, alt) {
					t.Errorf("alternate stack %x, want %x", got, alt)
				}
			}
			return f.thaw()
		})
		tr.Close()
		if err != nil {
			t.Fatal(err)
		}
		checkUntouched(t, pid)
		after, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Errorf("the maps changed:\n%s\nwant\n%s", after, before)
		}
		s.check(t, "freeze")
	}
}

// altStack reads a thread's alternate stack.
func altStack(t *testing.T, f *frozen, i int) []byte {
	t.Helper()
	if err := f.r.Enter(f.threads[i], f.states[i]); err != nil {
		t.Fatal(err)
	}
	b, err := f.r.NewBatch()
	if err != nil {
		t.Fatal(err)
	}
	buf := b.Alloc(24)
	b.Call(unix.SYS_SIGALTSTACK, 0, buf.Addr())
	if err := errors.Join(b.Run(), f.r.Leave()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// checkState compares a thread that was left with what was captured.
func checkState(t *testing.T, f *frozen, i int) {
	t.Helper()
	regs, err := f.threads[i].Regs()
	if err != nil {
		t.Fatal(err)
	}
	if regs != f.states[i].Regs {
		t.Errorf("registers\n%+v, want\n%+v", regs, f.states[i].Regs)
	}
	mask, err := f.threads[i].SigMask()
	if err != nil || mask != f.states[i].SigMask {
		t.Errorf("mask %#x, %v, want %#x", mask, err, f.states[i].SigMask)
	}
	x, err := f.threads[i].XState()
	if err != nil || !bytes.Equal(x, f.states[i].XState) {
		t.Errorf("vector registers differ (%v)", err)
	}
}

func TestOneThreadAtATime(t *testing.T) {
	s := startTarget(t, compile(t, "regs"), "locks")
	inFrozen(t, s.cmd.Process.Pid, func(f *frozen) error {
		if err := f.r.Enter(f.threads[1], f.states[1]); err == nil {
			t.Error("a second thread was entered")
		}
		if err := f.r.Leave(); err != nil {
			return err
		}
		if _, err := f.r.Syscall(unix.SYS_GETPID); err == nil {
			t.Error("a call without a thread")
		}
		if _, err := f.r.NewBatch(); err == nil {
			t.Error("a batch without a thread")
		}
		return nil
	})
	s.check(t, "misuse")
}

// A thread stopped in epoll_wait must not see EINTR, and timed sleeps go on.
func TestInterruptedCallsGoOn(t *testing.T) {
	s := startTarget(t, compile(t, "regs"), "sleep")
	for range 30 {
		inFrozen(t, s.cmd.Process.Pid, func(f *frozen) error { return batchOf(f, 2) })
		time.Sleep(2 * time.Millisecond)
	}
	s.check(t, "30 freezes")
	if n := s.eintr(); n != 0 {
		t.Errorf("the target saw EINTR %d times", n)
	}
}

// A thread inside a restartable sequence is aborted, as the kernel would have done.
func TestRseqAbort(t *testing.T) {
	cmd, words := startReady(t, nil, "critical")
	var start, end uint64
	fmt.Sscanf(strings.Join(words, " "), "0x%x 0x%x", &start, &end)
	if start == 0 || end <= start {
		t.Fatalf("the target said %q", words)
	}
	aborted := 0
	for range 20 {
		inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
			switch rip := f.states[0].Regs.Rip; {
			case rip >= start && rip < end:
				t.Errorf("rip %#x is inside the sequence", rip)
			case rip > end && rip < end+16:
				aborted++
			}
			return nil
		})
		time.Sleep(time.Millisecond)
	}
	if aborted < 15 {
		t.Errorf("aborted %d times in 20 stops", aborted)
	}
}

func TestGroupStop(t *testing.T) {
	s := startTarget(t, compile(t, "regs"), "locks")
	pid := s.cmd.Process.Pid
	unix.Kill(pid, unix.SIGSTOP)
	eventually(t, "it is stopped", func() bool {
		st, _ := readStat(pid)
		return st.state == 'T'
	})
	inFrozen(t, pid, func(f *frozen) error {
		if !f.states[0].GroupStop {
			t.Error("the group stop was not seen")
		}
		snap, err := f.r.Snapshot(time.Now().Add(patience))
		if err != nil {
			return err
		}
		return errors.Join(snap.Close(), batchOf(f, 3))
	})
	eventually(t, "it is stopped again after the freeze", func() bool { // it wakes up to stop anew
		st, _ := readStat(pid)
		return st.state == 'T'
	})
	unix.Kill(pid, unix.SIGCONT)
	s.check(t, "SIGCONT")

	// SIGSTOP and SIGCONT may also come while a thread runs our code.
	inFrozen(t, pid, func(f *frozen) error {
		unix.Kill(pid, unix.SIGSTOP)
		if err := batchOf(f, 3); err != nil {
			return err
		}
		if _, err := f.r.Syscall(unix.SYS_GETPID); err != nil {
			return err
		}
		unix.Kill(pid, unix.SIGCONT)
		return batchOf(f, 3)
	})
	s.check(t, "SIGSTOP and SIGCONT while frozen")
	inFrozen(t, pid, func(f *frozen) error {
		unix.Kill(pid, unix.SIGSTOP)
		return batchOf(f, 3)
	})
	eventually(t, "it is stopped by the signal from the freeze", func() bool {
		st, _ := readStat(pid)
		return st.state == 'T'
	})
	unix.Kill(pid, unix.SIGCONT)
	s.check(t, "SIGCONT")
	checkUntouched(t, pid)
}

// A SIGURG of the program's own that comes during a batch reaches it afterwards, once,
// with its sender.
func TestForeignSIGURG(t *testing.T) {
	for _, mode := range []string{"urgent", "urgentblocked"} {
		t.Run(mode, func(t *testing.T) {
			cmd, in, out := startTalking(t, mode)
			pid := cmd.Process.Pid
			inFrozen(t, pid, func(f *frozen) error {
				unix.Kill(pid, unix.SIGURG)
				if err := batchOf(f, 10); err != nil {
					return err
				}
				return batchOf(f, 10)
			})
			fmt.Fprintln(in, "tell")
			line, err := out.ReadString('\n')
			if want := fmt.Sprintf("1 %d\n", os.Getpid()); line != want || err != nil {
				t.Errorf("it got %q, want %q (%v)", line, want, err)
			}
			checkUntouched(t, pid)
		})
	}
}

func TestQueuedSignals(t *testing.T) {
	cmd, _ := startReady(t, nil, "queued")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		own, err := f.threads[0].PeekSiginfo(false)
		if err != nil {
			return err
		}
		shared, err := f.threads[0].PeekSiginfo(true)
		if err != nil {
			return err
		}
		if len(own) != 3 || len(shared) != 2 || len(own[0]) != 128 {
			t.Fatalf("%d own signals, %d shared", len(own), len(shared))
		}
		for i, s := range own {
			if s[24] != byte(i) { // si_value
				t.Errorf("own signal %d: value %d", i, s[24])
			}
		}
		if shared[1][24] != 11 {
			t.Errorf("shared signal 1: value %d", shared[1][24])
		}
		return nil
	})
}

func TestMemIsOpen(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		b := make([]byte, 4)
		if _, err := f.r.Mem().ReadAt(b, int64(f.r.vdso.start)); err != nil || string(b) != "\x7fELF" {
			t.Errorf("%q, %v", b, err)
		}
		return nil
	})
}
