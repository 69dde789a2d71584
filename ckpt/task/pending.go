package task

import (
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

const (
	siTimer    = -2 // SI_TIMER: sent by a timer of timer_create(2)
	siTimerTID = 16 // where siginfo_t holds the timer's id
)

// ReadPending fills in the signals queued to the process as a whole, and adds to all queues the
// signals that are pending without an entry there, which the kernel allows when memory or
// RLIMIT_SIGPENDING ran out. pt is the stopped leader.
//
// It must come after ReadTaskInside's timers were read, or a timer that fires in between is lost:
// neither pending yet nor armed any more. A timer that fires after it was read is both, so
// since has to be a moment before that batch ran: timers that were due between then and now and
// whose signal is queued are taken as fired.
func ReadPending(pt *ptrace.Thread, t *image.Task, since time.Time) error {
	shared, err := pt.PeekSiginfo(true)
	if err != nil {
		return fmt.Errorf("pid %d: %w", t.PID, err)
	}
	elapsed := time.Since(since)
	st, err := readStatus(int(t.PID), 0)
	if err != nil {
		return fmt.Errorf("pid %d: %w", t.PID, err)
	}
	t.Pending = addBare(shared, st.ShdPnd)
	for i := range t.Threads {
		th := &t.Threads[i]
		ts := st
		// A queue entry can only be missing where the count of them has hit its limit,
		// so the other threads' files need not be read in most cases.
		if th.TID != t.PID {
			if st.SigQMax == 0 || st.SigQ < st.SigQMax {
				continue
			}
			if ts, err = readStatus(int(t.PID), int(th.TID)); err != nil {
				return fmt.Errorf("thread %d: %w", th.TID, err)
			}
		}
		th.Pending = addBare(th.Pending, ts.SigPnd)
	}
	settleTimers(t, elapsed)
	return nil
}

// addBare adds signals that are in the mask but not in the queue, as the kernel would
// deliver them: as if sent by kill(2) from pid 0.
func addBare(queued [][]byte, mask uint64) [][]byte {
	for _, info := range queued {
		if sig := int(int32(le.Uint32(info))); sig >= 1 && sig <= lastSignal {
			mask &^= bit(sig)
		}
	}
	for sig := 1; sig <= lastSignal; sig++ {
		if mask&bit(sig) != 0 {
			info := make([]byte, siginfoSize)
			le.PutUint32(info, uint32(sig))
			queued = append(queued, info)
		}
	}
	return queued
}

// settleTimers corrects the timers that fired between the moment they were read and the
// moment the queues were.
func settleTimers(t *image.Task, elapsed time.Duration) {
	if it := &t.ITimers[unix.ITIMER_REAL]; it.Value > 0 && it.Value <= elapsed.Microseconds() && hasSignal(t.Pending, int(unix.SIGALRM)) {
		it.Value = 0
	}
	for i := range t.Timers {
		pt := &t.Timers[i]
		if pt.Value > 0 && pt.Interval == 0 && pt.Value <= int64(elapsed) && timerPending(t, pt.ID) {
			pt.Value = 0
		}
	}
}

func hasSignal(queued [][]byte, sig int) bool {
	for _, info := range queued {
		if int(le.Uint32(info)) == sig {
			return true
		}
	}
	return false
}

// timerPending says whether a signal of the timer is queued anywhere in the process.
func timerPending(t *image.Task, id int32) bool {
	in := func(queued [][]byte) bool {
		for _, info := range queued {
			if int32(le.Uint32(info[8:])) == siTimer && int32(le.Uint32(info[siTimerTID:])) == id {
				return true
			}
		}
		return false
	}
	if in(t.Pending) {
		return true
	}
	for i := range t.Threads {
		if in(t.Threads[i].Pending) {
			return true
		}
	}
	return false
}

// writePending queues the signals of a thread to itself and, in the leader, those of the
// process. Only the thread itself may queue a siginfo that claims to come from the kernel.
// A signal without a queue entry gets one: the siginfo it is delivered with is the same.
func writePending(b *ptrace.Batch, t *image.Task, th *image.Thread, leader bool) {
	forPending(t, th, leader, func(nr uintptr, sig int, info []byte, args ...uint64) error {
		if sig != int(unix.SIGURG) { // a batch ends with this one; see WriteUrgent
			b.Call(nr, append(args, b.Put(info).Addr())...).Label(fmt.Sprintf("queue signal %d", sig))
		}
		return nil
	})
}

// forPending calls f for each signal to be queued, with the system call that does it and
// its arguments but for the last, the address of info.
func forPending(t *image.Task, th *image.Thread, leader bool, f func(nr uintptr, sig int, info []byte, args ...uint64) error) error {
	for _, info := range th.Pending {
		sig := le.Uint32(info)
		if err := f(unix.SYS_RT_TGSIGQUEUEINFO, int(sig), info, uint64(t.PID), uint64(th.TID), uint64(sig)); err != nil {
			return err
		}
	}
	if !leader {
		return nil
	}
	for _, info := range t.Pending {
		sig := le.Uint32(info)
		if err := f(unix.SYS_RT_SIGQUEUEINFO, int(sig), info, uint64(t.PID), uint64(sig)); err != nil {
			return err
		}
	}
	return nil
}

// Process is a thread of a restored process that makes single system calls, as Remote.Syscall does.
type Process interface {
	Syscall(nr uintptr, args ...uint64) (uint64, error)
	// Put copies bytes to memory of the process that stays valid until the next Put.
	Put(b []byte) (addr uint64, err error)
}

// WriteUrgent queues SIGURG, if it was pending, by single calls: a batch ends with that signal and
// would take a pending one for it. It comes after WriteLast's batch, as the last calls of the
// thread.
func WriteUrgent(p Process, t *image.Task, th *image.Thread, leader bool) error {
	return forPending(t, th, leader, func(nr uintptr, sig int, info []byte, args ...uint64) error {
		if sig != int(unix.SIGURG) {
			return nil
		}
		addr, err := p.Put(info)
		if err == nil {
			_, err = p.Syscall(nr, append(args, addr)...)
		}
		if err != nil {
			return fmt.Errorf("thread %d: queue SIGURG: %w", th.TID, err)
		}
		return nil
	})
}

// checkPending bounds what writePending is given.
func checkPending(t *image.Task) error {
	check := func(queued [][]byte) error {
		for _, info := range queued {
			if len(info) != siginfoSize {
				return fmt.Errorf("pid %d: a queued signal of %d bytes, want %d", t.PID, len(info), siginfoSize)
			}
		}
		return nil
	}
	errs := []error{check(t.Pending)}
	for i := range t.Threads {
		errs = append(errs, check(t.Threads[i].Pending))
	}
	return errors.Join(errs...)
}

// checkTimers lists the timers that cannot be made anew.
func checkTimers(pid int, timers []procfs.Timer, alive func(tid int) bool) []image.Finding {
	var all []image.Finding
	for _, t := range timers {
		if t.Notify&sigevThreadID != 0 && !alive(t.TID) {
			all = append(all, image.Finding{
				Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: fmt.Sprintf("POSIX timer %d", t.ID),
				What:   fmt.Sprintf("it signals thread %d, which has ended, so it cannot be made anew", t.TID),
				Remedy: "let the program delete that timer (timer_delete)",
			})
		}
	}
	return all
}
