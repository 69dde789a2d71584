package ptrace

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Snapshot is a process that never runs: a copy-on-write copy of another one's private
// memory. Shared mappings are not copied, MADV_DONTFORK ones are missing, and
// MADV_WIPEONFORK ones are zero in it.
type Snapshot struct {
	PID int // in our pid namespace

	th     *Thread
	mem    *os.File
	parent int // single clone: the target, which must reap the copy; 0: init does
	nspid  int // the copy's number there
}

const (
	// intermediateFlags make a child that shares memory and files with the target, so that it
	// is cheap, and that closing them is nobody's affair. Its exit signal is 0: the
	// target's wait(2) does not see it.
	intermediateFlags = unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_FS
	// copyFlags make the copy. Files are shared until it has dropped them: closing a copy
	// of the table would release the target's POSIX locks.
	copyFlags = unix.CLONE_FILES

	helperOptions = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACECLONE
)

// Snapshot makes a copy of the entered process's memory. The target clones a helper that
// shares its memory, the helper clones the copy, and ends: so the copy is a child of
// init, not of the target, whose wait(2) never sees either. If the target is the init of
// its pid namespace or a subreaper, the copy would come back to it; then it is a direct
// child with no exit signal, which Close reaps. Any error means: copy the memory of the
// frozen process instead (typical: pids.max of its cgroup, or overcommit).
//
// The mappings without, each with start and length, are not in the copy.
func (r *Remote) Snapshot(deadline time.Time, without ...[2]uint64) (*Snapshot, error) {
	if r.th == nil || r.stub {
		return nil, fmt.Errorf("pid %d: snapshot: no thread is entered", r.pid)
	}
	direct, err := r.keepsOrphans()
	if err != nil {
		return nil, err
	}
	options := r.th.options
	if err := r.th.SetOptions(options | unix.PTRACE_O_TRACECLONE); err != nil {
		return nil, err
	}
	var s *Snapshot
	if direct {
		s, err = r.singleClone(deadline)
	} else {
		s, err = r.doubleClone(deadline)
	}
	if e := r.th.SetOptions(options); err == nil {
		err = e
	}
	for _, m := range without {
		if err == nil {
			_, err = r.helperCall(s.th, deadline, unix.SYS_MUNMAP, m[0], m[1])
		}
	}
	if err == nil {
		err = s.open()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pid %d: copy-on-write snapshot: %w", r.pid, err), r.discard(s))
	}
	return s, nil
}

// discard ends a copy that did not come off, while the target is still entered.
func (r *Remote) discard(s *Snapshot) error {
	if s == nil {
		return nil
	}
	err := s.kill()
	if s.parent != 0 {
		err = errors.Join(err, r.reap(s.nspid))
	}
	return err
}

// keepsOrphans reports whether orphans below the process become its children.
func (r *Remote) keepsOrphans() (bool, error) {
	if r.Orphans != nil {
		return *r.Orphans, nil
	}
	ids := nsPIDs(r.pid)
	if len(ids) > 0 && ids[len(ids)-1] == 1 {
		return true, nil
	}
	b, err := r.NewBatch()
	if err != nil {
		return false, err
	}
	buf := b.Alloc(4)
	b.Call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, buf.Addr())
	if err := b.Run(); err != nil {
		return false, err
	}
	return buf.Bytes()[0] != 0, nil
}

// doubleClone returns the copy also with an error, if there is one to kill.
func (r *Remote) doubleClone(deadline time.Time) (*Snapshot, error) {
	a, nspid, err := r.cloneHelper(intermediateFlags, deadline)
	if a == nil {
		return nil, err
	}
	var s *Snapshot
	if err == nil {
		s, err = r.copyFrom(a, deadline)
	}
	// The copy is cut off from the target's files before its parent ends.
	if err == nil {
		err = r.dropFiles(s.th, deadline)
	}
	if e := a.killAndWait(time.Now().Add(r.Timeout)); err == nil {
		err = e
	}
	if e := r.reap(nspid); err == nil {
		err = e
	}
	return s, err
}

// singleClone makes the copy a child of the target.
func (r *Remote) singleClone(deadline time.Time) (*Snapshot, error) {
	b, nspid, err := r.cloneHelper(copyFlags, deadline)
	if b == nil {
		return nil, err
	}
	s := &Snapshot{PID: b.TID, th: b, parent: r.pid, nspid: nspid}
	if err == nil {
		err = r.dropFiles(b, deadline)
	}
	return s, err
}

// cloneHelper makes a child of the target, which is stopped, named and dies with us. The
// child is returned also with an error, if there is one.
func (r *Remote) cloneHelper(flags uint64, deadline time.Time) (*Thread, int, error) {
	h, nspid, err := r.cloneUnlimited(flags, deadline)
	if h == nil {
		return nil, 0, err
	}
	if err == nil {
		_, err = r.helperCall(h, deadline, unix.SYS_PRCTL, unix.PR_SET_NAME, r.frame.nameAddr())
	}
	if err == nil {
		err = h.SetOptions(helperOptions)
	}
	return h, nspid, err
}

// cloneUnlimited clones, and lifts the target's limit of processes for the moment if
// that is in the way.
func (r *Remote) cloneUnlimited(flags uint64, deadline time.Time) (*Thread, int, error) {
	h, nspid, err := r.cloneUntil(deadline, unix.SYS_CLONE, []uint64{flags})
	if !errors.Is(err, unix.EAGAIN) {
		return h, nspid, err
	}
	old, ok := r.liftLimit(unix.RLIMIT_NPROC)
	if !ok {
		return nil, 0, err // pids.max, or not allowed: the first error says it
	}
	h, nspid, err = r.cloneUntil(deadline, unix.SYS_CLONE, []uint64{flags})
	if e := unix.Prlimit(r.pid, unix.RLIMIT_NPROC, &old, nil); e != nil {
		err = errors.Join(err, fmt.Errorf("pid %d: set RLIMIT_NPROC back to %d: %w", r.pid, old.Cur, e))
	}
	return h, nspid, err
}

// liftLimit lifts a limit of the target as far as we may and returns what it was.
func (r *Remote) liftLimit(resource int) (old unix.Rlimit, ok bool) {
	if unix.Prlimit(r.pid, resource, nil, &old) != nil {
		return old, false
	}
	for _, most := range []uint64{unix.RLIM_INFINITY, old.Max} { // beyond Max it takes CAP_SYS_RESOURCE
		l := unix.Rlimit{Cur: most, Max: most}
		if most > old.Cur && unix.Prlimit(r.pid, resource, &l, nil) == nil {
			return old, true
		}
	}
	return old, false
}

// copyFrom makes the copy a child of the helper.
func (r *Remote) copyFrom(a *Thread, deadline time.Time) (*Snapshot, error) {
	regs, err := a.Regs()
	if err != nil {
		return nil, err
	}
	setCall(&regs, r.frame.code(stubHelper), unix.SYS_CLONE, []uint64{copyFlags})
	_, child, err := a.call(&regs, deadline, "copy the address space (clone)")
	if child == 0 {
		if err == nil {
			err = errors.New("clone made a child that is not traced")
		}
		return nil, err
	}
	b := a.child(child)
	if err == nil {
		_, err = b.WaitStop(deadline)
	}
	return &Snapshot{PID: child, th: b}, err
}

// dropFiles takes the copy out of the target's session, whose number its remains would
// hold, and off its files.
func (r *Remote) dropFiles(b *Thread, deadline time.Time) error {
	if _, err := r.helperCall(b, deadline, unix.SYS_SETSID); err != nil {
		return fmt.Errorf("setsid in the copy: %w", err)
	}
	_, err := r.helperCall(b, deadline, unix.SYS_CLOSE_RANGE, 0, 1<<32-1, unix.CLOSE_RANGE_UNSHARE)
	if err != nil {
		return fmt.Errorf("close_range in the copy: %w", err)
	}
	return nil
}

// helperCall makes a call in a helper.
func (r *Remote) helperCall(h *Thread, deadline time.Time, nr uintptr, args ...uint64) (uint64, error) {
	regs, err := h.Regs()
	if err != nil {
		return 0, err
	}
	setCall(&regs, r.frame.code(stubHelper), nr, args)
	ret, _, err := h.call(&regs, deadline, callName(nr))
	return ret, err
}

// open opens the copy's memory, and makes the copy, not the target, what the kernel kills
// when memory runs out.
func (s *Snapshot) open() (err error) {
	// Refused only where /proc is read-only, and no loss then.
	if fd, err := unix.Open(fmt.Sprintf("/proc/%d/oom_score_adj", s.PID), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Write(fd, []byte("1000"))
		unix.Close(fd)
	}
	s.mem, err = openMem(s.PID, os.O_RDONLY)
	return err
}

// Mem is the copy's memory, /proc/PID/mem. It may be read from any thread. (Not with
// process_vm_readv(2), which would copy each page for good.)
func (s *Snapshot) Mem() *os.File { return s.mem }

// Close kills the copy. If it is a child of the target, one thread of the target, which
// must have been detached, is stopped for some 0.3 ms to reap it; where that cannot be
// now, the next Sweep does it.
func (s *Snapshot) Close() error {
	if s == nil || s.th == nil {
		return nil
	}
	err := s.kill()
	if err == nil && s.parent != 0 {
		err = notNow(s.reapDirect())
	}
	if err != nil {
		return fmt.Errorf("end the snapshot process %d: %w", s.PID, err)
	}
	return nil
}

// notNow drops the errors that leave the reaping to the next Sweep.
func notNow(err error) error {
	var traced *TracedError
	var late *TimeoutError
	if errors.As(err, &traced) || errors.As(err, &late) {
		return nil
	}
	return notGone(err)
}

// kill ends the copy; reaping is its parent's affair.
func (s *Snapshot) kill() error {
	th := s.th
	s.th = nil
	if s.mem != nil {
		s.mem.Close() // opened for reading
	}
	return notGone(th.killAndWait(time.Now().Add(callTimeout)))
}

// reapDirect makes the target wait for the copy. It has a tracer of its own: a thread that
// does not stop in time is only let go by the end of its tracer.
func (s *Snapshot) reapDirect() error {
	t := NewTracer()
	defer t.Close()
	return t.Do(func() error {
		defer t.Hurry()()
		th, err := t.Seize(s.parent, 0)
		if err != nil {
			return err
		}
		if _, err := th.WaitStop(time.Now().Add(callTimeout)); err != nil {
			return err
		}
		return errors.Join(s.reapIn(th), th.Detach())
	})
}

// reapIn does so in a stopped thread.
func (s *Snapshot) reapIn(th *Thread) (err error) {
	r, err := NewRemote(s.parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	st, err := th.Capture(r.mem)
	if err != nil {
		return err
	}
	if err := r.Enter(th, st); err != nil {
		return err
	}
	return r.reap(s.nspid)
}
