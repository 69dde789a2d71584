package ptrace

import (
	"errors"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Tracer owns the OS thread that traces. Threads that it seized belong to it until they
// are detached or the Tracer is closed.
type Tracer struct {
	jobs chan job
	done chan struct{} // closed when the OS thread is about to end
	tid  int           // of the OS thread

	lender *lender // nil: see Lend
	waits  waiting // see Watch

	// step is called before each ptrace request and each write to a target's memory;
	// nil except in tests, which kill the tracer there.
	step func()
}

type job struct {
	f    func() error
	done chan error
}

// errClosed is returned by Do after Close.
var errClosed = errors.New("ptrace: the tracer is closed")

// NewTracer starts a tracing thread. It sets SA_NOCLDSTOP on this process's SIGCHLD
// action: every stop of a tracee would otherwise raise a signal in the Go runtime.
func NewTracer() *Tracer {
	noStopSignals()
	t := &Tracer{jobs: make(chan job), done: make(chan struct{})}
	ready := make(chan struct{})
	go t.start(ready)
	<-ready
	return t
}

// start runs the tracer on an OS thread other than the first one of the process: a
// locked goroutine that ends takes its thread along, which detaches all tracees, but Go
// only parks the first thread.
func (t *Tracer) start(ready chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		go t.start(ready)
		<-ready // holds the first thread until the other has one
		runtime.UnlockOSThread()
		return
	}
	t.tid = unix.Gettid()
	close(ready)
	defer close(t.done) // not unlocked: the thread ends with the goroutine
	for j := range t.jobs {
		j.run()
	}
}

// run answers also if f ends the goroutine (runtime.Goexit, as a failing test does).
func (j job) run() {
	err := errClosed
	defer func() { j.done <- err }()
	err = j.f()
}

// Do runs f on the tracing thread and returns its error. A switch to that thread costs
// some 15 µs: post whole jobs, not single calls. Do inside Do runs f at once.
func (t *Tracer) Do(f func() error) error {
	select {
	case <-t.done:
		return errClosed
	default:
	}
	if t.Here() {
		return f()
	}
	j := job{f: f, done: make(chan error, 1)}
	select {
	case t.jobs <- j:
		return <-j.done
	case <-t.done:
		return errClosed
	}
}

// Here reports whether the caller runs on the tracing thread, inside Do.
func (t *Tracer) Here() bool { return unix.Gettid() == t.tid }

// TID is the thread id of the tracing thread.
func (t *Tracer) TID() int { return t.tid }

// Close ends the tracing thread. The kernel detaches every tracee that is left, whatever
// it is doing (those seized with PTRACE_O_EXITKILL are killed). It must not be called
// inside Do, nor while another goroutine calls Do.
func (t *Tracer) Close() {
	select {
	case <-t.done:
	default:
		close(t.jobs)
		<-t.done
	}
	// The tracees are detached when the thread is gone, some µs after its goroutine.
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if unix.Tgkill(unix.Getpid(), t.tid, 0) != nil {
			return
		}
	}
}

// ptrace is the one door to ptrace(2).
func (t *Tracer) ptrace(req, tid int, addr, data uintptr) error {
	t.mark()
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// ptracePtr is ptrace with a pointer for data.
func (t *Tracer) ptracePtr(req, tid int, addr uintptr, data unsafe.Pointer) (int, error) {
	t.mark()
	n, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, uintptr(data), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// mark tells a test that the next step is about to be taken.
func (t *Tracer) mark() {
	if t.step != nil {
		t.step()
	}
}

// ptraceVec is ptracePtr with a second pointer for addr.
func (t *Tracer) ptraceVec(req, tid int, addr, data unsafe.Pointer) (int, error) {
	t.mark()
	n, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), uintptr(addr), uintptr(data), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// saNoCldStop is SA_NOCLDSTOP.
const saNoCldStop = 1

// kernelSigaction is the kernel's struct sigaction on x86_64.
type kernelSigaction struct {
	handler, flags, restorer, mask uint64
}

// noStopSignals adds SA_NOCLDSTOP to the SIGCHLD action that is there. It leaves the
// handler alone: ignoring SIGCHLD would reap children behind os/exec's back.
func noStopSignals() {
	var sa kernelSigaction
	get := func(set, old *kernelSigaction) unix.Errno {
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD),
			uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
		return e
	}
	if get(nil, &sa) != 0 || sa.flags&saNoCldStop != 0 {
		return // it only costs time
	}
	sa.flags |= saNoCldStop
	get(&sa, nil)
}
