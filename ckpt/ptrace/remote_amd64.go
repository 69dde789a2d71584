package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// callTimeout is the default of Remote.Timeout.
const callTimeout = 10 * time.Second

// allSignals is the mask that blocks every signal that can be blocked.
const allSignals = ^uint64(0)

// A Remote carries out system calls inside one stopped process. There may be only one for
// an address space at a time: processes that share one are served one after the other.
type Remote struct {
	// Timeout bounds each call and each batch; 10 s unless changed.
	Timeout time.Duration
	// Orphans says whether orphans below the process become its children, since it is a subreaper or
	// the init of its pid namespace. nil: Snapshot asks.
	Orphans *bool

	pid int
	mem *os.File

	th  *Thread // that has foreign registers; nil: none
	st  *State  // what it goes on with
	sud []byte  // its syscall user dispatch, which is off meanwhile; nil: it has none

	// In a target: its mappings when we came, and where its frame goes.
	text        []byte // /proc/PID/maps; nil: no longer true
	maps        []vma
	vdso        *vdso
	frame       *frame
	dirty       bool     // the tail of the vdso is not as the kernel made it
	chosen      bool     // slot, kept and keptScratch are known
	slot        int      // of our frame in the tail of the vdso
	kept        []int    // slots that have to stay as they are
	keptScratch []uint64 // scratch mappings of predecessors that have to stay
	last        *Thread
	lastSt      *State

	// In a restore stub: where a syscall instruction is, and the registers of th.
	stub bool
	insn uint64
	regs Regs

	scratch    scratch
	foreignURG [][]byte // siginfo_t of signals to the program that came during a batch
}

// NewRemote prepares for calls inside the process pid, whose threads are all stopped. It
// changes nothing yet. Call it before the first Enter and Close it in any case.
func NewRemote(pid int) (*Remote, error) {
	mem, err := openMem(pid, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	r := &Remote{Timeout: callTimeout, pid: pid, mem: mem}
	if r.text, err = quickread.File(fmt.Sprintf("/proc/%d/maps", pid)); err == nil {
		r.maps, err = parseMaps(pid, r.text)
	}
	if err == nil {
		r.vdso, err = findVDSO(pid, mem, r.maps)
	}
	if err == nil && bytes.Contains(r.vdso.left, frameMagic) {
		err = awaitHelpers(pid)
	}
	if err != nil {
		mem.Close()
		return nil, err
	}
	return r, nil
}

// Maps is /proc/PID/maps as it was before there was anything of ours, and still is but for the scratch memory
// (Scratch); nil if leftovers have been removed since.
func (r *Remote) Maps() []byte { return r.text }

// Mem is the process's memory, /proc/PID/mem.
func (r *Remote) Mem() *os.File { return r.mem }

// Enter makes th the thread that carries out the calls, with foreign registers until
// Leave. st is what Capture returned: it stands in the frame that brings the thread back
// should we die. All threads of the process must have been captured.
func (r *Remote) Enter(th *Thread, st *State) error {
	if r.th != nil {
		return fmt.Errorf("pid %d: enter thread %d: thread %d has not been left", r.pid, th.TID, r.th.TID)
	}
	if st.Regs.Cs != userCS {
		return fmt.Errorf("thread %d runs 32-bit code", th.TID)
	}
	if !r.chosen {
		if err := r.chooseSlot(); err != nil {
			return err
		}
	}
	f, err := buildFrame(st, r.vdso.start+uint64(r.vdso.slotOff(r.slot)), r.scratch.addr)
	if err != nil {
		return fmt.Errorf("thread %d: %w", th.TID, err)
	}
	if err := r.unfilter(th); err != nil {
		return err
	}
	if err := r.redirect(th, st, f); err != nil {
		return errors.Join(err, r.refilter(th))
	}
	r.th, r.st, r.frame, r.last, r.lastSt = th, st, f, th, st
	if err := th.SetSigMask(allSignals); err != nil { // only now: see the package comment
		return errors.Join(err, r.Leave())
	}
	return nil
}

// redirect writes the frame and points the thread at the way out of it.
func (r *Remote) redirect(th *Thread, st *State, f *frame) error {
	r.dirty = true
	if err := r.write(th.t, f.bytes, f.addr); err != nil {
		return err
	}
	regs := r.foreign(st)
	regs.Rip = f.code(stubReturn)
	return th.SetRegs(&regs)
}

// unfilter turns off what would catch our calls: seccomp filters and syscall user dispatch.
func (r *Remote) unfilter(th *Thread) (err error) {
	if err = th.suspendSeccomp(); err != nil {
		return err
	}
	r.sud, err = th.suspendSUD()
	return err
}

// refilter undoes unfilter.
func (r *Remote) refilter(th *Thread) (err error) {
	if r.sud != nil {
		err = th.SetSUD(r.sud)
		r.sud = nil
	}
	return errors.Join(err, th.resumeSeccomp())
}

// foreign returns the registers for running our code: the stack pointer below the red
// zone (a signal could come yet), clean flags, no interrupted call.
func (r *Remote) foreign(st *State) Regs {
	regs := st.Regs
	regs.Rsp = (regs.Rsp - 128) &^ 63
	regs.Eflags = 0x202 // IF, and the bit that is always 1
	regs.Orig_rax = ^uint64(0)
	return regs
}

// Leave gives the entered thread its mask and registers back. It does nothing if no
// thread is entered.
func (r *Remote) Leave() error {
	if r.th == nil || r.stub {
		return nil
	}
	th, st := r.th, r.st
	err := r.requeue()
	if e := th.SetSigMask(st.SigMask); e != nil {
		return r.lost(errors.Join(err, e))
	}
	if e := th.SetRegs(&st.Regs); e != nil {
		return r.lost(errors.Join(err, e))
	}
	r.th, r.st = nil, nil
	return errors.Join(err, r.refilter(th))
}

// lost handles a thread that could not be put back. If it is alive (a call that hangs)
// it still needs its frame, and r.th stays set so that Close leaves the frame in place.
func (r *Remote) lost(err error) error {
	if st, serr := readStat(r.th.TID); serr != nil || st.state == 'Z' || st.state == 'X' {
		r.th, r.st = nil, nil
		return err
	}
	return fmt.Errorf("pid %d: thread %d keeps its frame in the vdso until the next checkpoint: %w", r.pid, r.th.TID, err)
}

// Syscall carries out one system call in the entered thread and returns its result; the
// error is a unix.Errno if the call itself failed.
func (r *Remote) Syscall(nr uintptr, args ...uint64) (uint64, error) {
	ret, _, err := r.callAt(stubCall, nr, args, r.deadline())
	return ret, err
}

// Clone is Syscall for clone, clone3, fork and vfork in a thread whose options trace such
// children (PTRACE_O_TRACECLONE, …). It returns the child in its first stop, before it has
// run anything, and its id as the process sees it.
func (r *Remote) Clone(nr uintptr, args ...uint64) (th *Thread, nsid int, err error) {
	return r.cloneUntil(r.deadline(), nr, args)
}

func (r *Remote) cloneUntil(deadline time.Time, nr uintptr, args []uint64) (th *Thread, nsid int, err error) {
	ret, child, err := r.callAt(stubClone, nr, args, deadline)
	if err != nil {
		return nil, 0, err
	}
	if child == 0 {
		return nil, int(ret), fmt.Errorf("pid %d: %s made %d, which is not traced", r.pid, callName(nr), ret)
	}
	th = r.th.child(child)
	_, err = th.WaitStop(deadline)
	return th, int(ret), err
}

// child adopts a child that was attached by the kernel with the options of th.
func (th *Thread) child(tid int) *Thread {
	c := th.t.Adopt(tid)
	c.options = th.options
	return c
}

func (r *Remote) deadline() time.Time { return time.Now().Add(r.Timeout) }

// callAt carries out a call through one of the entries of the stub.
func (r *Remote) callAt(entry int, nr uintptr, args []uint64, deadline time.Time) (uint64, int, error) {
	if r.th == nil {
		return 0, 0, fmt.Errorf("pid %d: %s: no thread is entered", r.pid, callName(nr))
	}
	regs, rip := r.regs, r.insn
	if !r.stub {
		regs, rip = r.foreign(r.st), r.frame.code(entry)
	}
	setCall(&regs, rip, nr, args)
	return r.th.call(&regs, deadline, callName(nr))
}

// Close unmaps the scratch memory and puts the bytes of the vdso back; after it the
// process is byte for byte as before. The thread that was entered last must still be
// stopped. It may be called more than once.
func (r *Remote) Close() error {
	if r.mem == nil {
		return nil
	}
	var err error
	if !r.stub {
		err = r.cleanUp()
	}
	r.mem.Close() // nothing is buffered
	r.mem = nil
	return notGone(err)
}

// cleanUp takes back all that was changed. What a thread still needs stays.
func (r *Remote) cleanUp() error {
	err := errors.Join(r.dropScratch(), r.Leave())
	if r.th != nil {
		return err
	}
	return errors.Join(err, r.restoreVDSO())
}

// notGone drops the error that a process which is no more cannot be cleaned up.
func notGone(err error) error {
	var gone *GoneError
	if errors.As(err, &gone) {
		return nil
	}
	return err
}

// dropScratch unmaps the scratch mapping, in the last thread if none is entered.
func (r *Remote) dropScratch() error {
	if r.scratch.addr == 0 {
		return nil
	}
	if err := r.requeue(); err != nil {
		return err
	}
	if r.th == nil {
		if err := r.Enter(r.last, r.lastSt); err != nil {
			return err
		}
	}
	_, err := r.Syscall(unix.SYS_MUNMAP, r.scratch.addr, uint64(r.scratch.size))
	if err != nil {
		return fmt.Errorf("pid %d: unmap the scratch memory at %#x: %w", r.pid, r.scratch.addr, err)
	}
	r.scratch = scratch{}
	return nil
}

// restoreVDSO puts back the tail of the vdso, also after a predecessor that was killed.
func (r *Remote) restoreVDSO() error {
	if !r.dirty && !r.chosen {
		return nil // what is there may be in use
	}
	want := bytes.Clone(r.vdso.bytes[r.vdso.tail:])
	for _, slot := range r.kept {
		off := r.vdso.slotOff(slot) - r.vdso.tail
		copy(want[off:off+frameLen()], r.vdso.left[off:])
	}
	if !r.dirty && bytes.Equal(want, r.vdso.left) {
		return nil
	}
	var t *Tracer
	if r.last != nil {
		t = r.last.t
	}
	err := r.write(t, want, r.vdso.start+uint64(r.vdso.tail))
	if err == nil {
		r.dirty, r.vdso.left = false, want
	}
	return err
}

// write writes to the process's memory, read-only or not.
func (r *Remote) write(t *Tracer, b []byte, addr uint64) error {
	if t != nil {
		t.mark()
	}
	n, err := r.mem.WriteAt(b, int64(addr))
	if err == nil {
		return nil
	}
	if _, serr := os.Stat(fmt.Sprintf("/proc/%d/mem", r.pid)); n == 0 && serr != nil {
		return &GoneError{TID: r.pid, Doing: "write its memory"}
	}
	return fmt.Errorf("pid %d: write %d bytes at %#x: %w", r.pid, len(b), addr, err)
}

// setNote records the scratch address in the frame, before the mapping is made, for
// whoever finds it after our death.
func (r *Remote) setNote(addr uint64) error {
	var b [frameNoteLen]byte
	binary.LittleEndian.PutUint64(b[:], addr)
	return r.write(r.th.t, b[:], r.frame.note())
}

// openMem opens /proc/PID/mem.
func openMem(pid, flags int) (*os.File, error) {
	path := fmt.Sprintf("/proc/%d/mem", pid)
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0) // os.OpenFile would offer it to the poller: four calls more
	if errors.Is(err, os.ErrNotExist) {
		return nil, &GoneError{TID: pid, Doing: "open its memory"}
	}
	if err != nil {
		return nil, fmt.Errorf("pid %d: open its memory: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
