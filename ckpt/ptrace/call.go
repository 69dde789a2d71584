package ptrace

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// call runs one system call in a stopped thread whose registers regs already hold it, and
// leaves the thread in the exit stop. child is the pid, as we see it, of a process or
// thread that the call made, if the options ask for that; 0: none.
func (th *Thread) call(regs *Regs, deadline time.Time, doing string) (ret uint64, child int, err error) {
	if err = th.SetRegs(regs); err != nil {
		return 0, 0, err
	}
	if _, err = th.nextSyscallStop(deadline, doing); err != nil {
		return 0, 0, err
	}
	if child, err = th.nextSyscallStop(deadline, doing); err != nil {
		return 0, child, err
	}
	after, err := th.Regs()
	if err != nil {
		return 0, child, err
	}
	ret, err = result(after.Rax)
	return ret, child, err
}

// nextSyscallStop resumes the thread until the next syscall stop. All signals are
// blocked, so the others that can come are job control, which is handed on (the process
// will be stopped when we let it go), and faults, which would be ours.
func (th *Thread) nextSyscallStop(deadline time.Time, doing string) (child int, err error) {
	sig := unix.Signal(0)
	for {
		if err := th.toSyscall(sig); err != nil {
			return child, err
		}
		s, err := th.wait(deadline, doing)
		if err != nil {
			return child, err
		}
		sig = 0
		switch {
		case s.syscall():
			return child, nil
		case s.signal() && s.Signal != unix.SIGSTOP:
			return child, fmt.Errorf("thread %d: %s: it got signal %d in our code", th.TID, doing, s.Signal)
		case s.signal():
			sig = s.Signal
		case s.Msg != 0:
			child = int(s.Msg)
		}
	}
}

// InterruptCall lets a stopped thread enter the system call that regs hold and interrupts it
// there: the interrupt is pending before the call begins, so it comes back as soon as it
// would sleep, however busy the machine is. All signals must be blocked. It returns the
// registers of the stop in which the thread is then; Rax is the kernel's own result, such
// as -ERESTART_RESTARTBLOCK.
func (th *Thread) InterruptCall(regs *Regs, deadline time.Time) (Regs, error) {
	if err := th.SetRegs(regs); err != nil {
		return Regs{}, err
	}
	if _, err := th.nextSyscallStop(deadline, "enter the call that is to be interrupted"); err != nil {
		return Regs{}, err
	}
	if err := th.Interrupt(); err != nil {
		return Regs{}, err
	}
	if err := th.Cont(0); err != nil {
		return Regs{}, err
	}
	if _, err := th.WaitStop(deadline); err != nil {
		return Regs{}, err
	}
	return th.Regs()
}

// GroupStopOrCall lets a stopped thread run until it takes part in a stop of its process by
// job control, and reports true, or until it has made the system call that regs hold,
// which must be one without effect. Signals come before: a thread that gets as far as the
// call has no signal pending that would stop it.
func (th *Thread) GroupStopOrCall(regs *Regs, deadline time.Time) (bool, error) {
	const doing = "let it stop by job control"
	if err := th.SetRegs(regs); err != nil {
		return false, err
	}
	for sig := unix.Signal(0); ; {
		if err := th.toSyscall(sig); err != nil {
			return false, err
		}
		s, err := th.wait(deadline, doing)
		switch {
		case err != nil || s.GroupStop:
			return err == nil, err
		case s.syscall():
			_, err := th.nextSyscallStop(deadline, doing)
			return false, err
		}
		if sig = 0; s.signal() {
			sig = s.Signal
		}
	}
}

// callName says which call is meant.
func callName(nr uintptr) string { return fmt.Sprintf("remote system call %d", nr) }

// isErrno reports whether err is the result of a call that was carried out.
func isErrno(err error) bool {
	var e unix.Errno
	return errors.As(err, &e)
}
