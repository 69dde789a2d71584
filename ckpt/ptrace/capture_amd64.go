package ptrace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// State is what a stopped thread needs to go on.
type State struct {
	Regs      Regs // at the stop, with the interrupted syscall and rseq set right; see ResumeRegs
	XState    []byte
	SigMask   uint64
	Rseq      RseqConfig
	GroupStop bool // its process was stopped by job control
	Restart   RestartInfo
}

// RestartInfo says what the thread was doing in the kernel.
type RestartInfo struct {
	NR          int  // syscall that the stop interrupted; -1: none; 219 (restart_syscall): an earlier stop has interrupted it already, and which it was cannot be told
	Restartable bool // the kernel will issue it anew when the thread goes on
	FromBlock   bool // only the kernel's restart block could continue it, or it was continued from there
}

// settleTime bounds how long a thread may take to leave a dead predecessor's code.
const settleTime = time.Second

// Capture reads the state of a stopped thread; mem is its /proc/PID/mem. A thread that is
// still on its way out of a killed tracer's code is let out of it first. Two things that a
// stop would otherwise break are put right, in State.Regs and in the thread: a syscall
// that the kernel would end with EINTR for no signal is restarted, and a restartable
// sequence (rseq(2)) is aborted as after any preemption.
func (th *Thread) Capture(mem *os.File) (*State, error) {
	st := &State{}
	var err error
	if st.Regs, err = th.Regs(); err != nil {
		return nil, err
	}
	if err = th.settle(mem, &st.Regs); err != nil {
		return nil, err
	}
	if st.Regs.Cs != userCS {
		return nil, fmt.Errorf("thread %d runs 32-bit code (cs %#x): only 64-bit processes can be checkpointed", th.TID, st.Regs.Cs)
	}
	if st.XState, err = th.XState(); err != nil {
		return nil, err
	}
	if st.SigMask, err = th.SigMask(); err != nil {
		return nil, err
	}
	if st.Rseq, err = th.Rseq(); err != nil {
		return nil, err
	}
	fixed := fixInterrupted(&st.Regs)
	fixed = fixRseq(&st.Regs, st.Rseq, mem) || fixed
	if fixed {
		if err = th.SetRegs(&st.Regs); err != nil {
			return nil, err
		}
	}
	st.Restart = restartInfo(&st.Regs, mem)
	st.GroupStop = th.groupStop
	return st, nil
}

// interrupted lists the syscalls that return a plain EINTR on any stop, although no
// signal handler runs (signal(7), "Interruption of system calls by stop signals").
var interrupted = map[uint64]bool{
	unix.SYS_EPOLL_WAIT:      true,
	unix.SYS_EPOLL_PWAIT:     true,
	unix.SYS_EPOLL_PWAIT2:    true,
	unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS:    true,
	unix.SYS_IO_URING_ENTER:  true, // nothing has been submitted then
	unix.SYS_SEMOP:           true,
	unix.SYS_SEMTIMEDOP:      true,
}

// fixInterrupted makes the kernel restart such a call, or return EINTR if a handler
// really runs. A relative timeout begins anew.
func fixInterrupted(r *Regs) bool {
	if int64(r.Rax) != eINTR || !interrupted[r.Orig_rax] {
		return false
	}
	r.Rax = negative(eRestartNoHand)
	return true
}

// fixRseq aborts the critical section of rseq(2) that the thread is in. The kernel would
// do so by itself, but not once it has seen the thread's instruction pointer elsewhere.
func fixRseq(r *Regs, c RseqConfig, mem *os.File) bool {
	if c.Ptr == 0 {
		return false
	}
	// Unreadable memory is the program's own fault, for which the kernel kills it when it
	// goes on: not ours to report.
	var b [32]byte
	if _, err := mem.ReadAt(b[:8], int64(c.Ptr)+8); err != nil {
		return false
	}
	cs := binary.LittleEndian.Uint64(b[:])
	if cs == 0 || int64(cs) < 0 {
		return false
	}
	if _, err := mem.ReadAt(b[:], int64(cs)); err != nil {
		return false
	}
	start, length := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	if r.Rip-start >= length {
		return false
	}
	r.Rip = binary.LittleEndian.Uint64(b[24:])
	return true
}

// inSyscall reports whether the stop interrupted a system call.
func inSyscall(r *Regs) bool { return int64(r.Orig_rax) >= 0 }

func restartInfo(r *Regs, mem *os.File) RestartInfo {
	if !inSyscall(r) {
		return RestartInfo{NR: -1}
	}
	i := RestartInfo{NR: restartedCall(r, mem)}
	switch int64(r.Rax) {
	case eRestartSys, eRestartNoIntr, eRestartNoHand:
		i.Restartable = true
	case eRestartRestartBlock:
		i.Restartable, i.FromBlock = true, true
	}
	if r.Orig_rax == unix.SYS_RESTART_SYSCALL {
		i.FromBlock = true
	}
	return i
}

// returnRegs returns the registers as at the point where the thread goes on in user space if
// the kernel does not restart an interrupted syscall for it. The restart block of a timed
// sleep is still there, as none of our calls is one that makes another: restart_syscall(2)
// sleeps on for the time that is left.
func (st *State) returnRegs() Regs {
	r := st.Regs
	if !inSyscall(&r) {
		return r
	}
	nr := r.Orig_rax
	r.Orig_rax = ^uint64(0)
	switch int64(r.Rax) {
	case eRestartSys, eRestartNoIntr, eRestartNoHand:
		r.Rip, r.Rax = r.Rip-syscallLen, nr
	case eRestartRestartBlock:
		r.Rip, r.Rax = r.Rip-syscallLen, unix.SYS_RESTART_SYSCALL
	}
	return r
}

// ResumeRegs is returnRegs for another process. Only the original thread has the restart
// block of a timed sleep, so poll and futex wait in full again, and the others return EINTR
// (the kernel has written the remaining time for callers that asked).
func (st *State) ResumeRegs() Regs {
	r := st.Regs
	if !inSyscall(&r) {
		return r
	}
	nr := r.Orig_rax
	if nr == unix.SYS_RESTART_SYSCALL {
		nr = uint64(st.Restart.NR)
	}
	r.Orig_rax = ^uint64(0)
	switch int64(r.Rax) {
	case eRestartSys, eRestartNoIntr, eRestartNoHand:
		r.Rip, r.Rax = r.Rip-syscallLen, nr
	case eRestartRestartBlock:
		if nr == unix.SYS_POLL || nr == unix.SYS_FUTEX {
			r.Rip, r.Rax = r.Rip-syscallLen, nr
		} else {
			r.Rax = negative(eINTR)
		}
	}
	return r
}

// restartedCall returns the number of the call that the thread is in. If the kernel has
// restarted it once already, the register says restart_syscall(2); the number is then
// still in the instruction before, mov $nr,%eax, in most code.
func restartedCall(r *Regs, mem *os.File) int {
	nr := int(r.Orig_rax)
	if nr != unix.SYS_RESTART_SYSCALL {
		return nr
	}
	var b [5 + syscallLen]byte
	_, err := mem.ReadAt(b[:], int64(r.Rip)-int64(len(b)))
	if err != nil || b[0] != 0xb8 || b[5] != 0x0f || b[6] != 0x05 {
		return nr
	}
	return int(binary.LittleEndian.Uint32(b[1:]))
}

// syscallLen is the length of the syscall instruction.
const syscallLen = 2

// negative returns a negative register value.
func negative(v int64) uint64 { return uint64(v) }

// settle lets a thread out of a dead predecessor's stub or batch: it needs a few
// instructions to its own. Its registers are read again into r.
func (th *Thread) settle(mem *os.File, r *Regs) error {
	deadline := time.Now().Add(settleTime)
	for pause := minPause; inForeignCode(mem, r.Rip); pause = min(2*pause, maxPause) {
		if time.Now().After(deadline) {
			return fmt.Errorf("thread %d does not leave the code of a killed checkpoint (rip %#x)", th.TID, r.Rip)
		}
		if err := th.runFor(pause, deadline); err != nil {
			return err
		}
		var err error
		if *r, err = th.Regs(); err != nil {
			return err
		}
	}
	return nil
}

// runFor lets the thread run for a moment: an interrupt at once would stop it where it
// is. It may stop by itself before, since an interrupt of a thread that has stopped (by
// job control) stays pending; a further one would be the same for the next time.
func (th *Thread) runFor(d time.Duration, deadline time.Time) error {
	if err := th.Cont(0); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil) // cut short: the next round is longer
	s, stopped, err := th.poll("let it leave the code of a killed checkpoint", false)
	if err != nil || stopped && !s.signal() {
		return err
	}
	if stopped {
		if err := th.Cont(s.Signal); err != nil {
			return err
		}
	}
	if err := th.Interrupt(); err != nil {
		return err
	}
	_, err = th.WaitStop(deadline)
	return err
}

// inForeignCode reports whether rip is inside code of ours, which carries a mark before it.
func inForeignCode(mem *os.File, rip uint64) bool {
	const window = 512
	if rip < window || int64(rip) < 0 {
		return false
	}
	b := make([]byte, window)
	from := rip - window
	if _, err := mem.ReadAt(b, int64(from)); err != nil { // the mapping may begin inside the window
		from = rip &^ (pageSize - 1)
		b = b[:min(rip-from, window)]
		if _, err := mem.ReadAt(b, int64(from)); err != nil {
			return false
		}
	}
	return behind(b, frameMagic, frameCodeOff-len(frameMagic), len(stubCode)) || behind(b, batchMagic, 0, len(batchCode))
}

// behind reports whether the end of b is in code of the given length that begins gap
// bytes behind magic.
func behind(b, magic []byte, gap, length int) bool {
	i := bytes.LastIndex(b, magic)
	if i < 0 {
		return false
	}
	off := len(b) - (i + len(magic) + gap)
	return off >= 0 && off <= length
}
