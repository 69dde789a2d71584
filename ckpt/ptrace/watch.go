package ptrace

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where several threads trace, or others of us are busy too, one that spins until its tracee stops keeps the
// tracee from the processor. It is better to sleep in wait4(2). That has no timeout, so a timer interrupts it from time to
// time, by a signal without SA_RESTART: then the tracer sees to its deadline, and lends to the tracee.
//
// The Go runtime is not told of the sleep, though it lasts: telling it means to wait, on the way back and without
// sleeping, for a thread of the runtime's that may be looking at ours at that moment, and that has no chance against us
// where we are in realtime. Who wants to stop all goroutines waits for the timer.

const (
	// wakeSignal is one of those that Go leaves alone, and unblocked, for the sake of the C library's threads, which we
	// have not.
	wakeSignal = unix.Signal(34)
	// watchPause is how long a tracer sleeps at most. A wait lasts some µs as a rule.
	watchPause = 500 * time.Microsecond

	sigevThreadID = 4 // SIGEV_THREAD_ID of asm-generic/siginfo.h
)

// waiting is how a tracer waits.
type waiting struct {
	mode   atomic.Int32
	sleeps atomic.Uint64 // how often it has slept, for tests
	timer  int32         // that wakes it, if it may sleep
}

// The modes.
const (
	unwatched int32 = iota // it must not sleep in wait4
	watched                // it may, after it has spun for a while
	crowded                // it had better do so at once
)

// Watch lets tracers sleep in their waits until the function it returns is called. No tracer may be
// waiting at either time.
func Watch(ts ...*Tracer) (stop func()) {
	if !catchWake() {
		return func() {}
	}
	mode := watched
	if len(ts) >= runtime.NumCPU() && len(ts) > 1 {
		mode = crowded
	}
	for _, t := range ts {
		if t.waits.makeTimer(t.tid) == nil {
			t.waits.mode.Store(mode)
		}
	}
	return func() {
		for _, t := range ts {
			if t.waits.mode.Swap(unwatched) != unwatched {
				_, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(t.waits.timer), 0, 0) // it is ours, and there
			}
		}
	}
}

// makeTimer makes the timer for a thread of ours; see timer_create(2).
func (w *waiting) makeTimer(tid int) error {
	ev := struct {
		value         uint64
		signo, notify int32
		tid           int32
		_             [11]int32
	}{signo: int32(wakeSignal), notify: sigevThreadID, tid: int32(tid)}
	_, _, e := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&w.timer)))
	if e != 0 {
		return e
	}
	return nil
}

// alarm begins to wake the tracer every so often, or ends that. It cannot fail for a timer that is there.
func (w *waiting) alarm(every time.Duration) {
	t := struct{ interval, first unix.Timespec }{unix.NsecToTimespec(int64(every)), unix.NsecToTimespec(int64(every))}
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(w.timer), 0, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
}

// wakeHandler does nothing and returns to wakeRestorer; they are in wake_amd64.s.
func wakeHandler()
func wakeRestorer()

var _, _ = wakeHandler, wakeRestorer // only their addresses are wanted, and not those of Go's wrappers

// addresses of them, as the kernel takes them.
func wakeHandlerAddr() uintptr
func wakeRestorerAddr() uintptr

const (
	saRestorer = 0x04000000 // flags of rt_sigaction(2), asm/signal.h
	saOnStack  = 0x08000000
)

// catchWake installs the handler, once, and reports whether it is there.
var catchWake = sync.OnceValue(func() bool {
	var old kernelSigaction
	action := func(set, old *kernelSigaction) unix.Errno {
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
		return e
	}
	const ignored = 1 // SIG_IGN, which whoever started us may have left
	if action(nil, &old) != 0 || old.handler > ignored {
		return false // somebody else has it
	}
	sa := kernelSigaction{handler: uint64(wakeHandlerAddr()), flags: saRestorer | saOnStack, restorer: uint64(wakeRestorerAddr()), mask: allSignals}
	return action(&sa, nil) == 0
})
