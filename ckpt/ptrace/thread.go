package ptrace

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Thread is a tracee. Except for Interrupt and WaitStop its methods need it stopped.
type Thread struct {
	TID int // in our pid namespace

	t         *Tracer
	options   int
	groupStop bool // as of the last PTRACE_EVENT_STOP
}

// Seize attaches to the thread tid and asks it to stop; WaitStop waits until it has. options
// are PTRACE_O_*; PTRACE_O_TRACESYSGOOD is always added. Without PTRACE_O_EXITKILL the
// thread survives us; with it, it is a process of our own making, which never runs its own
// code under a filter, so its seccomp filters are suspended for good, if we may. Errors:
// *GoneError, *TracedError.
func (t *Tracer) Seize(tid int, options int) (*Thread, error) {
	th := &Thread{TID: tid, t: t, options: options | unix.PTRACE_O_TRACESYSGOOD}
	own := options&unix.PTRACE_O_EXITKILL != 0
	if own {
		th.options |= unix.PTRACE_O_SUSPEND_SECCOMP
	}
	err := t.ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(th.options))
	if own && errors.Is(err, unix.EPERM) { // the option needs CAP_SYS_ADMIN
		th.options &^= unix.PTRACE_O_SUSPEND_SECCOMP
		err = t.ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(th.options))
	}
	if err != nil {
		return nil, seizeError(tid, err)
	}
	if err := th.Interrupt(); err != nil {
		return nil, err
	}
	return th, nil
}

// suspendSeccomp keeps the thread's filter from seeing our calls. It is for the time in
// which only our code runs: else the target could do what its filter forbids.
func (th *Thread) suspendSeccomp() error {
	if th.options&unix.PTRACE_O_SUSPEND_SECCOMP != 0 {
		return nil
	}
	err := th.SetOptions(th.options | unix.PTRACE_O_SUSPEND_SECCOMP)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if mode, err := statusField(th.TID, "Seccomp"); err != nil || mode == "0" || mode == "" {
		return nil // no filter; or it is gone, which the next call will say
	}
	return &SeccompError{TID: th.TID}
}

// Spare takes PTRACE_O_EXITKILL away: if we are killed now, the thread goes on instead of being killed.
func (th *Thread) Spare() error { return th.SetOptions(th.options &^ unix.PTRACE_O_EXITKILL) }

// EnforceSeccomp lets the thread's seccomp filters see also the calls that we make in it, for a
// helper that has a filter on purpose.
func (th *Thread) EnforceSeccomp() error { return th.resumeSeccomp() }

// resumeSeccomp undoes suspendSeccomp.
func (th *Thread) resumeSeccomp() error {
	if th.options&unix.PTRACE_O_SUSPEND_SECCOMP == 0 {
		return nil
	}
	th.options &^= unix.PTRACE_O_SUSPEND_SECCOMP
	return th.SetOptions(th.options)
}

// seizeError says why a thread could not be seized. EPERM also means that it is a
// zombie or that another traces it.
func seizeError(tid int, err error) error {
	if !errors.Is(err, unix.EPERM) {
		return wrap(tid, "seize it", err)
	}
	by, serr := statusField(tid, "TracerPid")
	if serr != nil {
		return &GoneError{TID: tid, Doing: "seize it"}
	}
	if n, _ := strconv.Atoi(by); n != 0 { // not a number: not traced
		if tgid, err := statusField(n, "Tgid"); err == nil { // the kernel names a thread
			n, _ = strconv.Atoi(tgid)
		}
		return &TracedError{TID: tid, By: n, Comm: comm(n)}
	}
	if st, _ := statusField(tid, "State"); st == "" || strings.ContainsAny(st[:1], "ZX") {
		return &GoneError{TID: tid, Doing: "seize it"}
	}
	return fmt.Errorf("thread %d: seize it: %w: this needs CAP_SYS_PTRACE or the same user", tid, err)
}

// Adopt returns the Thread for a child that the kernel attached by itself, because its
// parent has PTRACE_O_TRACECLONE, TRACEFORK or TRACEVFORK. Its first stop is
// PTRACE_EVENT_STOP, before it runs anything.
func (t *Tracer) Adopt(tid int) *Thread {
	return &Thread{TID: tid, t: t, options: unix.PTRACE_O_TRACESYSGOOD}
}

// Interrupt asks a running thread to stop with PTRACE_EVENT_STOP.
func (th *Thread) Interrupt() error {
	return wrap(th.TID, "interrupt it", th.t.ptrace(unix.PTRACE_INTERRUPT, th.TID, 0, 0))
}

// Cont lets the thread run; sig is delivered to it if it is in a signal stop, 0 is none.
func (th *Thread) Cont(sig unix.Signal) error {
	return wrap(th.TID, "continue it", th.t.ptrace(unix.PTRACE_CONT, th.TID, 0, uintptr(sig)))
}

// toSyscall lets the thread run to the next entry or exit of a system call.
func (th *Thread) toSyscall(sig unix.Signal) error {
	return wrap(th.TID, "continue it", th.t.ptrace(unix.PTRACE_SYSCALL, th.TID, 0, uintptr(sig)))
}

// Detach lets the thread go. An interrupted system call goes on, a process stopped by job
// control stays stopped. A thread that is not in a stop cannot be detached (*GoneError);
// [Tracer.Close] can.
func (th *Thread) Detach() error {
	if l := th.t.lender; l != nil && l.to == th.TID {
		l.reclaim()
	}
	return wrap(th.TID, "detach it", th.t.ptrace(unix.PTRACE_DETACH, th.TID, 0, 0))
}

// Kill sends SIGKILL to the thread's process.
func (th *Thread) Kill() error {
	return wrap(th.TID, "kill it", unix.Kill(th.TID, unix.SIGKILL))
}

// killAndWait kills a process of one thread and collects it as its tracer.
func (th *Thread) killAndWait(deadline time.Time) error {
	th.t.mark()
	if err := th.Kill(); err != nil {
		return err
	}
	for {
		_, err := th.wait(deadline, "wait for its end")
		var gone *GoneError
		if errors.As(err, &gone) {
			return nil
		}
		if err != nil {
			return err
		}
		// A last stop, reported before the kill arrived: it wakes up by itself.
	}
}

// SetOptions sets PTRACE_O_*; PTRACE_O_TRACESYSGOOD is always added, and
// PTRACE_O_SUSPEND_SECCOMP stays if it was there.
func (th *Thread) SetOptions(options int) error {
	options |= unix.PTRACE_O_TRACESYSGOOD | th.options&unix.PTRACE_O_SUSPEND_SECCOMP
	if err := th.t.ptrace(unix.PTRACE_SETOPTIONS, th.TID, 0, uintptr(options)); err != nil {
		return wrap(th.TID, "set its options", err)
	}
	th.options = options
	return nil
}

func (th *Thread) eventMsg() (uint64, error) {
	var v uint64
	_, err := th.t.ptracePtr(unix.PTRACE_GETEVENTMSG, th.TID, 0, unsafe.Pointer(&v))
	return v, wrap(th.TID, "read its event message", err)
}

// SigMask returns the blocked signals; bit n-1 is signal n.
func (th *Thread) SigMask() (uint64, error) {
	var v uint64
	_, err := th.t.ptracePtr(unix.PTRACE_GETSIGMASK, th.TID, 8, unsafe.Pointer(&v))
	return v, wrap(th.TID, "read its signal mask", err)
}

// SetSigMask sets the blocked signals.
func (th *Thread) SetSigMask(mask uint64) error {
	_, err := th.t.ptracePtr(unix.PTRACE_SETSIGMASK, th.TID, 8, unsafe.Pointer(&mask))
	return wrap(th.TID, "set its signal mask", err)
}

// siginfoSize is the size of siginfo_t.
const siginfoSize = 128

// sigInfo returns the siginfo_t of the signal-delivery stop the thread is in.
func (th *Thread) sigInfo() ([]byte, error) {
	b := make([]byte, siginfoSize)
	_, err := th.t.ptracePtr(unix.PTRACE_GETSIGINFO, th.TID, 0, unsafe.Pointer(&b[0]))
	return b, wrap(th.TID, "read its siginfo", err)
}

// PeekSiginfo returns the queued signals without taking them, siginfo_t of 128 bytes
// each: the thread's own, or those of the process if shared.
func (th *Thread) PeekSiginfo(shared bool) ([][]byte, error) {
	const chunk = 32
	var buf [chunk * siginfoSize]byte
	arg := struct {
		off   uint64
		flags uint32
		nr    int32
	}{nr: chunk}
	if shared {
		arg.flags = unix.PTRACE_PEEKSIGINFO_SHARED
	}
	var out [][]byte
	for {
		n, err := th.t.ptraceVec(unix.PTRACE_PEEKSIGINFO, th.TID, unsafe.Pointer(&arg), unsafe.Pointer(&buf[0]))
		if err != nil {
			return nil, wrap(th.TID, "read its queued signals", err)
		}
		for i := range n {
			out = append(out, append([]byte(nil), buf[i*siginfoSize:(i+1)*siginfoSize]...))
		}
		if n < chunk {
			return out, nil
		}
		arg.off += uint64(n)
	}
}

// RseqConfig is a thread's rseq(2) registration; Ptr 0 means none.
type RseqConfig struct {
	Ptr   uint64
	Size  uint32
	Sig   uint32
	Flags uint32
	_     uint32
}

// Rseq returns the rseq registration.
func (th *Thread) Rseq() (RseqConfig, error) {
	var c RseqConfig
	_, err := th.t.ptracePtr(unix.PTRACE_GET_RSEQ_CONFIGURATION, th.TID, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, wrap(th.TID, "read its rseq registration", err)
}

// SeccompFilter is one filter program of seccomp(2).
type SeccompFilter struct {
	Insns []byte // struct sock_filter, 8 bytes each
	Flags uint64 // SECCOMP_FILTER_FLAG_LOG or 0
}

// SeccompFilters returns the thread's filters, the oldest first. It needs CAP_SYS_ADMIN
// and a caller without a filter.
func (th *Thread) SeccompFilters() ([]SeccompFilter, error) {
	var out []SeccompFilter
	for i := 0; ; i++ {
		f, err := th.seccompFilter(i)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) && i == 0 {
			break // past the last; EINVAL: the thread is not in filter mode
		}
		if err != nil {
			return nil, wrap(th.TID, fmt.Sprintf("read its seccomp filter %d", i), err)
		}
		out = append(out, f)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 { // the kernel counts from the newest
		out[i], out[j] = out[j], out[i]
	}
	return out, nil
}

func (th *Thread) seccompFilter(i int) (f SeccompFilter, err error) {
	n, err := th.t.ptracePtr(unix.PTRACE_SECCOMP_GET_FILTER, th.TID, uintptr(i), nil)
	if err != nil || n == 0 {
		return f, err
	}
	f.Insns = make([]byte, n*8)
	if _, err = th.t.ptracePtr(unix.PTRACE_SECCOMP_GET_FILTER, th.TID, uintptr(i), unsafe.Pointer(&f.Insns[0])); err != nil {
		return f, err
	}
	meta := struct{ off, flags uint64 }{off: uint64(i)}
	_, err = th.t.ptracePtr(unix.PTRACE_SECCOMP_GET_METADATA, th.TID, unsafe.Sizeof(meta), unsafe.Pointer(&meta))
	f.Flags = meta.flags
	return f, err
}

// sudSize is the size of struct ptrace_sud_config.
const sudSize = 32

// SUD returns the thread's syscall user dispatch, struct ptrace_sud_config; nil if it is off.
func (th *Thread) SUD() ([]byte, error) {
	b := make([]byte, sudSize)
	_, err := th.t.ptracePtr(unix.PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, th.TID, sudSize, unsafe.Pointer(&b[0]))
	if err != nil {
		return nil, wrap(th.TID, "read its syscall user dispatch", err)
	}
	if b[0] == 0 { // mode PR_SYS_DISPATCH_OFF
		return nil, nil
	}
	return b, nil
}

// suspendSUD turns syscall user dispatch off, which would turn our calls into SIGSYS, and
// returns what it was. Should we die before it is set again it stays off: like a
// killing seccomp filter, a hole for which no cure is known.
func (th *Thread) suspendSUD() ([]byte, error) {
	was, err := th.SUD()
	if err != nil || was == nil {
		return nil, err
	}
	return was, th.SetSUD(make([]byte, sudSize))
}

// SetSUD sets what SUD returned.
func (th *Thread) SetSUD(b []byte) error {
	if len(b) != sudSize {
		return fmt.Errorf("thread %d: syscall user dispatch of %d bytes, want %d", th.TID, len(b), sudSize)
	}
	_, err := th.t.ptracePtr(unix.PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, th.TID, sudSize, unsafe.Pointer(&b[0]))
	return wrap(th.TID, "set its syscall user dispatch", err)
}

// wait4 is wait4(2) without the help of Go's scheduler, which would cost more than the call; see Watch of one that sleeps.
func wait4(pid int, ws *unix.WaitStatus, options int) (int, error) {
	var st uint32
	n, _, e := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(&st)), uintptr(options), 0, 0, 0)
	*ws = unix.WaitStatus(st)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
