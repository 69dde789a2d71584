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
// tracee from the processor. It is better to sleep in wait4(2). That has no timeout, so a watcher looks at
// the tracers from time to time, and interrupts one that is still in the same wait by a signal without
// SA_RESTART: then the tracer sees to its deadline, and lends to the tracee.

const (
	// wakeSignal is one of those that Go leaves alone, and unblocked, for the sake of the C library's threads, which we
	// have not.
	wakeSignal = unix.Signal(34)
	// watchPause is how often the watcher looks. A wait lasts some µs as a rule.
	watchPause = 250 * time.Microsecond
)

// waiting counts the waits of a tracer that may sleep: it is odd as long as one lasts.
type waiting struct {
	atomic.Uint64
	mode atomic.Int32
}

// How a tracer waits.
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
	over, ended := make(chan struct{}), make(chan struct{})
	ready := make(chan struct{})
	go Hurried(func() {
		close(ready)
		defer close(ended)
		watch(ts, over)
	})
	<-ready
	for _, t := range ts {
		t.waits.mode.Store(mode)
	}
	return func() {
		for _, t := range ts {
			t.waits.mode.Store(unwatched)
		}
		close(over)
		<-ended
	}
}

func watch(ts []*Tracer, over chan struct{}) {
	last := make([]uint64, len(ts))
	for {
		select {
		case <-over:
			return
		default:
		}
		pause := unix.NsecToTimespec(int64(watchPause))
		_ = unix.Nanosleep(&pause, nil) // cut short by a signal: we look earlier
		for i, t := range ts {
			n := t.waits.Load()
			if n%2 == 1 && n == last[i] {
				_ = unix.Tgkill(unix.Getpid(), t.tid, wakeSignal) // comes again if it was too early
			}
			last[i] = n
		}
	}
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
