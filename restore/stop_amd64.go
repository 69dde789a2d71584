package restore

import (
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// stops returns the signal that a process is to be left stopped by, or 0.
func (j *job) stops(p *proc) unix.Signal {
	switch {
	case p.task.State == image.TaskStopped && p.task.StopSignal != 0:
		return unix.Signal(p.task.StopSignal)
	case p.task.State == image.TaskStopped, j.opt.Stopped:
		return unix.SIGSTOP
	}
	return 0
}

// stop brings a process into a job-control stop, in which it stays when it is let go. It
// must come before signals are queued that would be taken first, and after its old parent
// is gone, as the end of that may continue an orphaned process group.
func (j *job) stop(p *proc) error {
	sig := j.stops(p)
	if sig == 0 {
		return nil
	}
	stopped, err := j.stopBy(p, sig)
	if err == nil && !stopped && sig != unix.SIGSTOP {
		j.warn("pid %d was stopped by %s, and its process group is orphaned now, in which that stops nobody: it is stopped by SIGSTOP", p.pid, unix.SignalName(sig))
		stopped, err = j.stopBy(p, unix.SIGSTOP)
	}
	if err == nil && !stopped {
		err = fmt.Errorf("it did not stop: %w", ErrTimeout)
	}
	if err != nil {
		return fmt.Errorf("restore pid %d: stop it by %s: %w", p.pid, unix.SignalName(sig), err)
	}
	return nil
}

// stopPatience is how long a thread may take until it stops by a signal.
const stopPatience = 100 * time.Millisecond

// stopBy sends the signal, lets every thread run in the stub's endless jump, and waits until
// all take part in the stop. It reports false if the signal was ignored.
func (j *job) stopBy(p *proc, sig unix.Signal) (bool, error) {
	if err := unix.Kill(p.pid, sig); err != nil {
		return false, err
	}
	for _, th := range p.threads {
		stopped, err := j.parkUntilStop(th, sig)
		if err != nil || !stopped {
			return false, err
		}
	}
	return true, nil
}

func (j *job) parkUntilStop(th *ptrace.Thread, sig unix.Signal) (bool, error) {
	regs, err := th.Regs()
	if err != nil {
		return false, err
	}
	regs.Rip, regs.Orig_rax = j.hole.insn()+syscallLen, ^uint64(0)
	if err := th.SetRegs(&regs); err != nil {
		return false, err
	}
	if err := th.SetSigMask(^uint64(0) &^ (1 << (sig - 1))); err != nil {
		return false, err
	}
	deadline := time.Now().Add(stopPatience)
	for {
		if err := th.Cont(0); err != nil {
			return false, err
		}
		s, err := th.WaitStop(deadline)
		var late *ptrace.TimeoutError
		if errors.As(err, &late) {
			return false, interruptParked(th, j.deadline)
		}
		if err != nil || s.GroupStop {
			return err == nil, errors.Join(err, th.SetSigMask(^uint64(0)))
		}
	}
}

// interruptParked stops a thread that still runs.
func interruptParked(th *ptrace.Thread, deadline time.Time) error {
	if err := th.Interrupt(); err != nil {
		return err
	}
	if _, err := th.WaitStop(deadline); err != nil {
		return err
	}
	return th.SetSigMask(^uint64(0))
}
