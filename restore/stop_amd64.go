package restore

import (
	"errors"
	"fmt"

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
		err = errors.New("it did not stop")
	}
	if err != nil {
		return fmt.Errorf("restore pid %d: stop it by %s: %w", p.pid, unix.SignalName(sig), err)
	}
	return nil
}

// stopBy sends the signal and waits until every thread takes part in the stop. It reports
// false if the signal was ignored.
func (j *job) stopBy(p *proc, sig unix.Signal) (bool, error) {
	if err := unix.Kill(p.pid, sig); err != nil {
		return false, err
	}
	for _, th := range p.threads {
		stopped, err := j.stopThread(th, sig)
		if err != nil || !stopped {
			return false, err
		}
	}
	return true, nil
}

// stopThread lets a thread take the signal, or a stop that another thread has begun.
func (j *job) stopThread(th *ptrace.Thread, sig unix.Signal) (bool, error) {
	regs, err := th.Regs()
	if err != nil {
		return false, err
	}
	regs.Rip, regs.Rax, regs.Orig_rax = j.hole.insn(), unix.SYS_GETPID, ^uint64(0)
	if err := th.SetSigMask(^uint64(0) &^ (1 << (sig - 1))); err != nil {
		return false, err
	}
	stopped, err := th.GroupStopOrCall(&regs, j.deadline)
	if err != nil {
		return false, err
	}
	return stopped, th.SetSigMask(^uint64(0))
}
