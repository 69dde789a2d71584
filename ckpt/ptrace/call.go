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

// callName says which call is meant.
func callName(nr uintptr) string { return fmt.Sprintf("remote system call %d", nr) }

// isErrno reports whether err is the result of a call that was carried out.
func isErrno(err error) bool {
	var e unix.Errno
	return errors.As(err, &e)
}
