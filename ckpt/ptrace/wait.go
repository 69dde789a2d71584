package ptrace

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A Stop says why a thread stopped.
type Stop struct {
	Event     int         // PTRACE_EVENT_*; 0 for a signal or a syscall stop
	Signal    unix.Signal // the signal; SIGTRAP|0x80 at a syscall stop
	GroupStop bool        // the process is stopped by job control (SIGSTOP, SIGTSTP, …)
	Msg       uint64      // PTRACE_GETEVENTMSG at fork, vfork and clone: the child's pid in our pid namespace
}

// syscallStop is the signal of a syscall stop under PTRACE_O_TRACESYSGOOD.
const syscallStop = unix.SIGTRAP | 0x80

func (s Stop) syscall() bool { return s.Event == 0 && s.Signal == syscallStop }

// signal reports a signal-delivery stop: the signal takes effect only if it is given
// back when the thread is resumed.
func (s Stop) signal() bool { return s.Event == 0 && s.Signal != syscallStop }

// WaitStop waits for the next stop of the thread that is not the delivery of a signal;
// signals are handed on to the thread as they come. It returns a *TimeoutError after the
// deadline and a *GoneError if the thread has ended.
func (th *Thread) WaitStop(deadline time.Time) (Stop, error) {
	for {
		s, err := th.wait(deadline, "wait for it to stop")
		if err != nil || !s.signal() {
			return s, err
		}
		if err := th.Cont(s.Signal); err != nil {
			return s, err
		}
	}
}

// Spinning covers the usual few µs until a thread stops; then the tracer sleeps: in wait4(2) if somebody
// watches that (Watch), else in pauses that grow, so that a long wait costs next to nothing.
const (
	spins    = 200
	minPause = 20 * time.Microsecond
	maxPause = 2 * time.Millisecond
)

// wait waits for the next stop of any sort.
func (th *Thread) wait(deadline time.Time, doing string) (Stop, error) {
	pause := minPause
	var begun time.Time
	mode := th.t.waits.mode.Load()
	for sleep, i := false, 0; ; i++ {
		s, ok, err := th.poll(doing, sleep)
		if ok || err != nil {
			return s, err
		}
		if i == 0 && mode == crowded {
			sleep = true
			continue
		}
		now := time.Now()
		if begun.IsZero() {
			begun = now
		}
		if i < spins && now.Sub(begun) < patient && !sleep {
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		if now.After(deadline) {
			return Stop{}, timeout(th.TID, doing)
		}
		if th.t.lender != nil {
			th.t.lender.lend(th.TID)
		}
		if sleep = mode != unwatched; sleep {
			continue
		}
		ts := unix.NsecToTimespec(int64(pause))
		_ = unix.Nanosleep(&ts, nil) // cut short by a signal: we look earlier
		pause = min(pause*2, maxPause)
	}
}

// poll asks once, and with sleep until the timer of Watch interrupts it. The wait is by number and with __WALL, since some tracees are threads
// or have an exit signal of 0; never for any child, which would steal what os/exec
// waits for.
func (th *Thread) poll(doing string, sleep bool) (s Stop, ok bool, err error) {
	var ws unix.WaitStatus
	options := unix.WALL
	if !sleep {
		options |= unix.WNOHANG
	}
	if sleep {
		th.t.waits.sleeps.Add(1)
		th.t.waits.alarm(watchPause)
	}
	pid, err := wait4(th.TID, &ws, options)
	if sleep {
		th.t.waits.alarm(0)
	}
	switch {
	case err == unix.EINTR || err == nil && pid == 0:
		return s, false, nil
	case err == unix.ECHILD:
		return s, false, &GoneError{TID: th.TID, Doing: doing}
	case err != nil:
		return s, false, fmt.Errorf("thread %d: wait4: %w", th.TID, err)
	case !ws.Stopped():
		return s, false, &GoneError{TID: th.TID, Doing: doing}
	}
	s.Signal, s.Event = ws.StopSignal(), int(ws)>>16
	switch s.Event {
	case unix.PTRACE_EVENT_STOP:
		s.GroupStop = s.Signal != unix.SIGTRAP
		th.groupStop = s.GroupStop
	case unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK, unix.PTRACE_EVENT_CLONE:
		s.Msg, err = th.eventMsg()
	}
	return s, err == nil, err
}
