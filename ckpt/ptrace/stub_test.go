package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inStub runs f on the tracing thread with the only thread of a stub, all signals blocked.
func inStub(t *testing.T, f func(pid int, th *Thread, r *Remote) error) {
	t.Helper()
	attr := &unix.SysProcAttr{Setpgid: true} // no orphaned group, in which SIGTSTP stops nobody
	cmd, words := startReady(t, attr, "stub")
	pid := cmd.Process.Pid
	scratch, err := strconv.ParseUint(words[0], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	withTracer(t, func(tr *Tracer) error {
		th, r := stubOf(t, tr, pid, scratch)
		return errors.Join(th.SetSigMask(^uint64(0)), f(pid, th, r), r.Close())
	})
}

// A sleep that is interrupted as it begins can be gone on with; a call that does not sleep
// just ends.
func TestInterruptCall(t *testing.T) {
	const restartBlock = -516 // ERESTART_RESTARTBLOCK of linux/errno.h
	inStub(t, func(pid int, th *Thread, r *Remote) error {
		data := r.scratch.data
		minute := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 60), 0)
		mem, err := openMem(pid, os.O_RDWR)
		if err != nil {
			return err
		}
		defer mem.Close()
		if _, err := mem.WriteAt(minute, int64(data)); err != nil {
			return err
		}
		for range 200 {
			for _, c := range []struct {
				nr   uintptr
				args []uint64
				want int64
			}{
				{unix.SYS_NANOSLEEP, []uint64{data, 0}, restartBlock},
				{unix.SYS_CLOCK_NANOSLEEP, []uint64{unix.CLOCK_BOOTTIME, 0, data, 0}, restartBlock},
				{unix.SYS_POLL, []uint64{0, 0, 60_000}, restartBlock},
				{unix.SYS_GETPID, nil, int64(pid)},
			} {
				regs, err := th.Regs()
				if err != nil {
					return err
				}
				setCall(&regs, r.insn, c.nr, c.args)
				got, err := th.InterruptCall(&regs, time.Now().Add(patience))
				if err != nil {
					return err
				}
				if int64(got.Rax) != c.want || got.Rip != r.insn+syscallLen {
					return fmt.Errorf("call %d: result %d at %#x, want %d at %#x", c.nr, int64(got.Rax), got.Rip, c.want, r.insn+syscallLen)
				}
			}
		}
		_, err = r.Syscall(unix.SYS_GETPID)
		return err
	})
}

// A stopping signal stops, unless it is ignored.
func TestGroupStopOrCall(t *testing.T) {
	inStub(t, func(pid int, th *Thread, r *Remote) error {
		for _, c := range []struct {
			sig     unix.Signal
			ignored bool
		}{{unix.SIGTSTP, true}, {unix.SIGTSTP, false}, {unix.SIGSTOP, false}} {
			if c.sig != unix.SIGSTOP {
				act := make([]byte, 32)
				if c.ignored {
					act[0] = 1 // SIG_IGN
				}
				b, err := r.NewBatch()
				if err != nil {
					return err
				}
				b.Call(unix.SYS_RT_SIGACTION, uint64(c.sig), b.Put(act).Addr(), 0, 8)
				if err := b.Run(); err != nil {
					return err
				}
			}
			regs, err := th.Regs()
			if err != nil {
				return err
			}
			setCall(&regs, r.insn, unix.SYS_GETPID, nil)
			if err := errors.Join(unix.Kill(pid, c.sig), th.SetSigMask(0)); err != nil {
				return err
			}
			stopped, err := th.GroupStopOrCall(&regs, time.Now().Add(patience))
			if err != nil {
				return err
			}
			if stopped == c.ignored {
				t.Errorf("%v (ignored %v): stopped %v", c.sig, c.ignored, stopped)
			}
			if err := errors.Join(th.SetSigMask(^uint64(0)), unix.Kill(pid, unix.SIGCONT)); err != nil {
				return err
			}
			if v, err := r.Syscall(unix.SYS_GETPID); err != nil || int(v) != pid {
				t.Errorf("getpid: %d, %v", v, err)
			}
		}
		return nil
	})
}

// stubOf seizes a process as restore does with its stubs.
func stubOf(t *testing.T, tr *Tracer, pid int, scratch uint64) (*Thread, *Remote) {
	t.Helper()
	th, err := tr.Seize(pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := th.WaitStop(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	maps, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := openMem(pid, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	v, start, err := readVDSO(pid, mem, maps)
	if err != nil {
		t.Fatal(err)
	}
	insn := start + uint64(bytes.Index(v, []byte{0x0f, 0x05}))
	r, err := NewStubRemote(pid, th, insn, scratch, 65536)
	if err != nil {
		t.Fatal(err)
	}
	return th, r
}

func TestStub(t *testing.T) {
	cmd, words := startReady(t, nil, "stub")
	pid := cmd.Process.Pid
	scratch, err := strconv.ParseUint(words[0], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	tr := NewTracer()
	defer tr.Close()
	err = tr.Do(func() error {
		th, r := stubOf(t, tr, pid, scratch)
		if v, err := r.Syscall(unix.SYS_GETPID); err != nil || int(v) != pid {
			t.Errorf("getpid: %d, %v", v, err)
		}
		batchTests(t, r, pid)

		// Another thread, and another process, in the same way.
		other, id, err := r.Clone(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_FS|unix.CLONE_FILES|unix.CLONE_SIGHAND|unix.CLONE_THREAD, 0, 0, 0, 0)
		if err != nil {
			return err
		}
		if err := r.Use(other); err != nil {
			return err
		}
		if v, err := r.Syscall(unix.SYS_GETTID); err != nil || int(v) != id || id != other.TID {
			t.Errorf("gettid in the thread: %d, %v, want %d", v, err, id)
		}
		batchTests(t, r, pid)
		child, id, err := r.Clone(unix.SYS_CLONE, uint64(unix.SIGCHLD), 0, 0, 0, 0)
		if err != nil {
			return err
		}
		cr, err := NewStubRemote(child.TID, child, r.insn, scratch, 65536)
		if err != nil {
			return err
		}
		if v, err := cr.Syscall(unix.SYS_GETPID); err != nil || int(v) != id {
			t.Errorf("getpid in the child: %d, %v", v, err)
		}
		batchTests(t, cr, id)
		if err := r.Use(th); err != nil {
			return err
		}
		batchTests(t, r, pid)
		if err := r.SetScratch(0, 0); err != nil {
			return err
		}
		if _, err := r.NewBatch(); err == nil {
			t.Error("a batch without scratch memory")
		}
		if err := r.Close(); err != nil {
			return err
		}
		return cr.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.Close()
	eventually(t, "it dies with its tracer", func() bool {
		st, _ := readStat(pid)
		return st.state == 'Z'
	})
}
