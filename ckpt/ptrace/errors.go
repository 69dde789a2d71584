package ptrace

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// GoneError says that a thread has ended, or is just ending.
type GoneError struct {
	TID   int
	Doing string // what was wanted of it
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("thread %d has ended (while: %s)", e.TID, e.Doing)
}

// TracedError says that a thread cannot be seized because it is being traced already.
type TracedError struct {
	TID  int
	By   int    // pid of its tracer
	Comm string // name of its tracer
}

func (e *TracedError) Error() string {
	return fmt.Sprintf("thread %d is traced by pid %d (%s): detach that debugger first", e.TID, e.By, e.Comm)
}

// SeccompError says that a thread has a seccomp filter, which this process may not suspend.
type SeccompError struct{ TID int }

func (e *SeccompError) Error() string {
	return fmt.Sprintf("thread %d has a seccomp filter: suspending it needs CAP_SYS_ADMIN and a caller without a filter", e.TID)
}

// TimeoutError says that a thread did not stop in time.
type TimeoutError struct {
	TID   int
	Doing string
	State byte   // as in /proc/TID/stat
	Wchan string // kernel function it waits in; empty if not known
	VFork bool   // it waits for a vfork(2) child to exec or exit
}

func (e *TimeoutError) Error() string {
	if e.VFork {
		return fmt.Sprintf("thread %d did not stop (while: %s): it is in vfork(2) until its child execs or exits; try again later", e.TID, e.Doing)
	}
	where := ""
	if e.Wchan != "" {
		where = " in " + e.Wchan
	}
	return fmt.Sprintf("thread %d did not stop in time (while: %s): state %c%s", e.TID, e.Doing, e.State, where)
}

// Timeout makes TimeoutError a net.Error-like timeout for callers that only ask that.
func (e *TimeoutError) Timeout() bool { return true }

// timeout looks at the thread to say why it does not stop.
func timeout(tid int, doing string) error {
	e := &TimeoutError{TID: tid, Doing: doing, State: '?'}
	if st, err := readStat(tid); err == nil {
		e.State = st.state
	}
	if b, err := quickread.File(fmt.Sprintf("/proc/%d/wchan", tid)); err == nil && string(b) != "0" {
		e.Wchan = string(b)
	}
	// The wait for a vfork child is inlined in kernel_clone or stands in a function of its
	// own, depending on the compiler; a kernel that hides wchan still shows D and a child.
	vfork := strings.Contains(e.Wchan, "vfork") || strings.Contains(e.Wchan, "kernel_clone")
	hidden := e.Wchan == "" && hasChildren(tid)
	e.VFork = e.State == 'D' && (vfork || hidden)
	return e
}

// wrap turns an errno of ptrace(2) on a tracee into an error that names it. ESRCH means
// that the thread is not there, or not in a stop, which for our callers is the same
// thing: only SIGKILL takes a thread out of a stop.
func wrap(tid int, doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return &GoneError{TID: tid, Doing: doing}
	}
	return fmt.Errorf("thread %d: %s: %w", tid, doing, err)
}
