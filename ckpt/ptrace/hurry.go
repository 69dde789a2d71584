package ptrace

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Hurry gives the tracing thread realtime priority, and does what Lend does, until the function
// it returns is called; both inside Do. On a busy machine a tree would be still for as long
// as it takes until it is our turn. Where we may not, it is the highest other priority.
func (t *Tracer) Hurry() (stop func()) {
	hurried := hurry()
	reclaim := t.Lend()
	return func() {
		reclaim()
		hurried()
	}
}

// Hurried runs f with the priority that Hurry gives to the tracing thread: what a tree that is
// still waits for, and is done by another goroutine.
func Hurried(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer hurry()()
	f()
}

// HurryRuntime gives the thread of the Go runtime that watches the others a priority above ours, until the function it
// returns is called. From time to time it marks those that are in a system call, and who returns from one meanwhile waits
// for it without sleeping: in realtime, on the processor that it needs, for as long as that lasts. Go starts it as the
// second thread of all; should that be another one, no harm is done.
func HurryRuntime() (stop func()) {
	tids, err := quickread.Numbers("/proc/self/task")
	if err != nil || len(tids) < 2 || tids[0] != unix.Getpid() {
		return func() {}
	}
	return hurryThread(tids[1], lenderPriority+1, realtimeMost)
}

// hurry raises the priority of the calling thread until the function it returns is called.
func hurry() (stop func()) { return hurryFor(realtimeMost) }

// hurryFor is hurry with at most so long in realtime, and the highest other priority after that.
func hurryFor(most time.Duration) (stop func()) {
	return hurryThread(unix.Gettid(), hurriedPriority, most)
}

func hurryThread(tid int, priority uint32, most time.Duration) (stop func()) {
	was, err := unix.SchedGetAttr(tid, 0)
	if err != nil || was.Policy == schedFIFO || was.Policy == schedRR || was.Policy == schedDeadline {
		return func() {}
	}
	if setFIFO(tid, priority) != nil && unix.Setpriority(unix.PRIO_PROCESS, tid, -20) != nil {
		return func() {}
	}
	var mu sync.Mutex
	over := false
	calm := time.AfterFunc(most, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over && setNormal(tid, was, -20) != nil {
			_ = setNormal(tid, was, was.Nice)
		}
	})
	return func() {
		calm.Stop()
		mu.Lock()
		defer mu.Unlock()
		over = true
		if unix.SchedSetAttr(tid, was, 0) != nil { // who has RLIMIT_RTPRIO and no capability cannot take the flag back
			_ = setNormal(tid, was, was.Nice)
		}
	}
}

// setNormal gives a thread its own policy with another nice value. What it clones does not
// inherit that.
func setNormal(tid int, was *unix.SchedAttr, nice int32) error {
	attr := *was
	attr.Nice, attr.Flags = nice, attr.Flags|schedResetOnFork
	return unix.SchedSetAttr(tid, &attr, 0)
}

// The lender comes before those who wait for it: they may have all processors between them.
const (
	hurriedPriority = 1
	lenderPriority  = 2
)

// setFIFO gives a thread of ours a realtime priority, unless there is a limit of the
// time that we may have a processor in realtime, after which SIGXCPU comes. What the Go
// runtime clones from the thread does not inherit it.
func setFIFO(tid int, priority uint32) error {
	var rttime unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_RTTIME, nil, &rttime); err != nil || rttime.Cur != unix.RLIM_INFINITY {
		return unix.EPERM
	}
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedFIFO, Priority: priority, Flags: schedResetOnFork}, 0)
}

// Lend makes tracees get a processor at once when we wait for them, until the function it
// returns is called; both inside Do. Without it each stop and each call that a tracee makes
// for us takes until it is its turn: on a busy machine seconds, if its policy is SCHED_IDLE.
//
// The priority of the tracee itself is never changed, since it would stay so if we are killed:
// see lender. Without the privilege (CAP_SYS_NICE) nothing happens.
func (t *Tracer) Lend() (stop func()) {
	if t.lender != nil {
		return func() {}
	}
	t.lender = newLender()
	return func() {
		if t.lender != nil {
			t.lender.end()
			t.lender = nil
		}
	}
}

// Lends reports whether Lend is in force and may do what it is for.
func (t *Tracer) Lends() bool { return t.lender != nil }

// lender is a realtime thread of ours that waits for a lock which, as far as the kernel knows,
// a tracee holds: the tracee then inherits its priority, see futex(2), "Priority-inheritance
// futexes". The lock is a word of our memory, of which the tracee knows nothing. When we are
// killed the wait ends, and with it the loan.
type lender struct {
	lock atomic.Uint32 // FUTEX_LOCK_PI2: the tracee's tid, or ours
	want atomic.Uint32 // the loan that was asked for last, counted
	made atomic.Uint32 // the last that the thread has begun to make; it may by then lend to who asked later
	done atomic.Uint32 // the last that is over
	over atomic.Bool   // the thread is to end
	self int           // tid of the thread
	to   int           // tid of the tracee of the last loan; 0: it was ended
}

const (
	futexWait    = 0 // operations of futex(2), linux/futex.h
	futexWake    = 1
	futexLockPI2 = 13 // with CLOCK_MONOTONIC; since Linux 5.14
	futexPrivate = 128
	futexTIDMask = 0x3fffffff // of a word of a lock: who holds it

	schedFIFO        = 1 // policies and a flag of sched_setattr(2), linux/sched.h
	schedRR          = 2
	schedDeadline    = 6
	schedResetOnFork = 1

	// realtimeMost is how long a thread of ours is in realtime in one freeze. One that copies GiB
	// of memory must not keep a processor from everybody for as long as that takes.
	realtimeMost = 200 * time.Millisecond
	// loanTime is how long a loan lasts at most. Who still needs it then borrows again.
	loanTime = time.Minute
	// patient is how long we wait for a tracee before it is lent to. It cannot run meanwhile where
	// the kernel has put it on our own processor: we keep that, yielding or not.
	patient = 50 * time.Microsecond
)

// newLender starts the thread; nil if we may not have realtime priority.
func newLender() *lender {
	l := new(lender)
	ready := make(chan bool)
	go l.start(ready)
	if !<-ready {
		return nil
	}
	return l
}

// start runs the lender on an OS thread that ends with it, as [Tracer.start] does.
func (l *lender) start(ready chan bool) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		again := make(chan bool)
		go l.start(again)
		ready <- <-again // holds the first thread until the other has one
		runtime.UnlockOSThread()
		return
	}
	l.self = unix.Gettid()
	err := setFIFO(l.self, lenderPriority)
	ready <- err == nil
	if err == nil {
		l.run()
	}
}

func (l *lender) run() {
	for seq := uint32(0); ; l.done.Store(seq) {
		for l.want.Load() == seq {
			futex(&l.want, futexWait|futexPrivate, seq, nil)
		}
		seq = l.want.Load()
		if l.over.Load() {
			return
		}
		l.made.Store(seq)
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		until := unix.NsecToTimespec(now.Nano() + int64(loanTime))
		// Not private: the kernel would want the holder to be a thread of ours. It fails if the
		// tracee is gone, and ends if it execs.
		futex(&l.lock, futexLockPI2, 0, &until)
	}
}

// lend lets a tracee have our priority until reclaim, or until another one is lent to.
func (l *lender) lend(tid int) {
	if l.to == tid && l.done.Load() != l.want.Load() {
		return
	}
	l.reclaim()
	var rttime unix.Rlimit
	if err := unix.Prlimit(tid, unix.RLIMIT_RTTIME, nil, &rttime); err != nil || rttime.Cur != unix.RLIM_INFINITY {
		return // realtime priority could bring it SIGXCPU
	}
	l.to = tid
	l.lock.Store(uint32(tid))
	l.ask()
}

func (l *lender) ask() {
	l.want.Add(1)
	_, _, _ = unix.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&l.want)), futexWake|futexPrivate, 1)
}

// reclaim ends the loan; the tracee has its own priority again when it returns. The lock is
// free from now on, and a signal makes the kernel look at it. Should our thread not come to
// that in all of callTimeout, the loan still ends by itself.
func (l *lender) reclaim() {
	if l.to == 0 {
		return
	}
	l.to = 0
	l.lock.Store(0)
	var end time.Time
	for i := 0; l.lends(); i++ {
		if i%spins == 0 {
			now := time.Now()
			if i == 0 {
				end = now.Add(callTimeout)
			} else if now.After(end) {
				return
			}
			_ = unix.Tgkill(unix.Getpid(), l.self, unix.SIGURG) // which the Go runtime expects at any time
		}
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// lends reports whether the thread may be waiting for the lock as it was before. If it has yet
// to come to that, it will find what is there then.
func (l *lender) lends() bool {
	return l.made.Load() != l.done.Load() && l.lock.Load()&futexTIDMask != uint32(l.self)
}

// end ends the thread.
func (l *lender) end() {
	l.reclaim()
	l.over.Store(true)
	l.ask()
}

// futex is futex(2) of an operation that may sleep. Its results do not matter: callers look at
// the word.
func futex(word *atomic.Uint32, op int, val uint32, timeout *unix.Timespec) {
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(op), uintptr(val), uintptr(unsafe.Pointer(timeout)), 0, 0)
}
