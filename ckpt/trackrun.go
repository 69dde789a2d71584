package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// trackRun is what the tries to take one checkpoint share.
type trackRun struct {
	t     *Tracker
	gen   int
	base  *base // of the tracker until now; the checkpoint's own from now on
	procs map[procID]*tracking
	fork  bool // make snapshots in any case
}

// tracking is what is known of the written pages of one process.
type tracking struct {
	t        *tracked
	old      []window // of the base
	covered  pageSet  // ranges whose state was read before the freeze
	pages    pageSet  // in covered: those that an image holds
	dirty    pageSet  // written since the base, or new
	overlay  *overlay // copies of all dirty pages; nil: there are none
	uncopied pageSet  // dirty pages that are not in the overlay
}

// begin starts a checkpoint. It takes the base: if the checkpoint fails the next one is a full one.
func (t *Tracker) begin() *trackRun {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.gen++
	run := &trackRun{t: t, gen: t.gen, base: t.base, procs: map[procID]*tracking{}, fork: t.shy > 0}
	t.base = nil
	t.shy = max(t.shy-1, 0)
	return run
}

// end gives back what the tries needed.
func (run *trackRun) end() {
	if run == nil {
		return
	}
	run.base.drop()
	for _, k := range run.procs {
		k.overlay.free()
	}
}

// errUnsure says that a process which was not snapshotted has changed its mappings since it runs again, so that nobody knows
// whether they were in the freeze as they were before.
var errUnsure = errors.New("its mappings changed in the moment of the checkpoint")

// shyFor is for how many checkpoints a process that changes its mappings all the time is snapshotted.
const shyFor = 16

// unsure makes snapshots from now on.
func (run *trackRun) unsure() {
	run.fork = true
	run.t.mu.Lock()
	defer run.t.mu.Unlock()
	run.t.shy = shyFor
}

// drop ends the tracking of a process.
func (run *trackRun) drop(k *tracking) {
	run.t.mu.Lock()
	defer run.t.mu.Unlock()
	delete(run.procs, k.t.id)
	if run.t.procs[k.t.id] == k.t {
		delete(run.t.procs, k.t.id)
	}
	k.overlay.free()
	k.t.release()
}

// trackable reports whether writes to an area can be followed: private memory without a file, that a fork would snapshot. (Of a
// file mapping, a page that is given up becomes the file's own again, and looks unwritten.)
func trackable(a *area) bool {
	if a.kind != image.VMAAnon || a.Shared || a.Ino != 0 || len(a.Flags) == 0 || a.frozenOnly() {
		return false
	}
	return !slices.ContainsFunc(a.Flags, func(f string) bool { return f == "dp" || f == "um" || f == "ui" })
}

// prepareTracking does, while the tree runs, what the freeze then need not: it begins to track what is
// not tracked yet, and copies what has been written. What does not work is no error: then the checkpoint is
// a full one.
func (c *Checkpoint) prepareTracking(ctx context.Context, s *survey) {
	run := c.o.run
	if run == nil {
		return
	}
	if err := canTrack(); err != nil {
		c.log("pid %d: its writes are not tracked: %v", s.root, err)
		return
	}
	if why := untrackable(s); why != "" {
		c.log("pid %d: its writes are not tracked: %s", s.root, why)
		return
	}
	step := c.op.Step("track", s.root)
	err := run.attach(ctx, c, s)
	if err != nil {
		c.log("pid %d: its writes cannot be tracked: %v", s.root, err)
	}
	for _, l := range s.procs {
		k := run.procs[procID{l.pid, l.stat.StartTime}]
		if k == nil {
			continue
		}
		if err := k.survey(l); err != nil {
			run.drop(k)
			c.log("pid %d: its writes are not tracked any more: %v", l.pid, err)
			continue
		}
		step.Count("dirty", int64(k.dirty.bytes()))
		if run.base == nil || run.fork {
			continue
		}
		if err := k.copyAhead(ctx, l, s.tableIDs(l.pid)); err != nil {
			k.forget()
			c.log("pid %d: what it has written cannot be found before the freeze, so all of it is read: %v", l.pid, err)
		}
	}
	step.End(err)
}

// manyMappings is how many mappings a process may have, of the 65,530 that it may by default (vm.max_map_count): what is tracked
// does not join what is not.
const manyMappings = 16384

// untrackable says why the writes of a tree cannot be followed, or are better not.
func untrackable(s *survey) string {
	if len(s.rings) > 0 {
		return "it has an io_uring, through which the kernel may write to buffers past the page tables"
	}
	for _, l := range s.procs {
		if len(l.areas) > manyMappings {
			return fmt.Sprintf("pid %d has %d mappings, and more than %d get near the limit when some of them no longer join", l.pid, len(l.areas), manyMappings)
		}
	}
	return ""
}

// survey reads the state of all memory of a process that is tracked.
func (k *tracking) survey(l *looked) error {
	sc, err := newScanner(l.pid)
	if err != nil {
		return err
	}
	defer sc.close()
	// Before Linux 6.14 memory that was moved by mremap(2) keeps marks of when it was tracked.
	for _, e := range k.t.fresh {
		if err := k.t.wp.Unprotect(e.Start, e.Len); err != nil {
			return err
		}
	}
	k.t.fresh = nil
	k.covered, k.pages = nil, nil
	for i := range l.areas {
		a := &l.areas[i]
		if !trackable(a) || !k.t.owned.contains(a.Start, a.End) {
			continue
		}
		st, err := sc.detail(a.Start, a.End)
		if errors.Is(err, unix.EPERM) && !errors.Is(err, errHalfway) {
			continue // it is another mapping now
		}
		if err != nil {
			return err
		}
		k.covered = k.covered.add(a.Start, a.End)
		k.pages = append(k.pages, st.pages...)
		k.dirty = k.dirty.union(st.written)
		k.uncopied = k.uncopied.union(st.written)
	}
	k.pages = k.pages.joined()
	return nil
}

// attach finds what is tracked of a tree, and begins to track the rest.
func (run *trackRun) attach(ctx context.Context, c *Checkpoint, s *survey) error {
	var missing []int
	run.t.mu.Lock()
	for _, l := range s.procs {
		id := procID{l.pid, l.stat.StartTime}
		t := run.t.procs[id]
		switch {
		case l.zombie() || run.procs[id] != nil:
		case t != nil && !t.wp.alive(): // it has called exec
			delete(run.t.procs, id)
			t.wp.close()
			missing = append(missing, l.pid)
		case t == nil:
			missing = append(missing, l.pid)
		default:
			run.add(t)
		}
	}
	run.forgetOthers(s)
	run.t.mu.Unlock()
	if len(missing) == 0 || !run.t.mayArm() {
		return nil
	}
	made, err := c.arm(ctx, s, missing)
	run.t.mu.Lock()
	defer run.t.mu.Unlock()
	if err != nil {
		run.t.rest = restFor
	}
	for _, t := range made {
		if run.t.closed {
			t.wp.close()
			continue
		}
		run.t.procs[t.id] = t
		run.add(t)
	}
	return err
}

func (run *trackRun) add(t *tracked) {
	k := &tracking{t: t}
	if run.base != nil {
		k.old = run.base.mms[t.id]
	}
	run.procs[t.id] = k
}

// forgetOthers drops the processes that are in the tree no more. Called with the tracker's mu held.
func (run *trackRun) forgetOthers(s *survey) {
	for id, t := range run.t.procs {
		l := s.find(id.pid)
		if l == nil || l.stat.StartTime != id.start || l.zombie() {
			delete(run.t.procs, id)
			t.release()
		}
	}
}

// of returns what is known of the writes of a process, or nil.
func (run *trackRun) of(st *procfs.Stat) *tracking {
	if run == nil {
		return nil
	}
	return run.procs[idOf(st)]
}

// idOf is the identity of a process.
func idOf(st *procfs.Stat) procID { return procID{st.PID, st.StartTime} }

// Stored tells that the image is safely stored and can be read from r: the next checkpoint with the
// same Tracker may refer to it. release is called when r is not needed any more, at once if no Tracker wants it. It may be called after Close.
func (c *Checkpoint) Stored(r io.ReaderAt, release func()) {
	run, b := c.o.run, c.basis
	if run == nil || b == nil {
		release()
		return
	}
	b.r, b.release = r, release
	t := run.t
	t.mu.Lock()
	late := t.closed || t.gen != run.gen
	if !late {
		t.base = b
	}
	t.mu.Unlock()
	if late {
		b.drop()
	}
}

// settleTracking records how the capture went.
func (c *Checkpoint) settleTracking() {
	run := c.o.run
	if run == nil {
		return
	}
	in := TrackInfo{Bytes: c.layout.Total, Unchanged: c.reused}
	for _, p := range c.procs {
		in.Copied = in.Copied || p.mem.copiedOnly
	}
	run.t.mu.Lock()
	run.t.lastSeen = in
	run.t.mu.Unlock()
	if run.base != nil {
		c.log("pid %d: %d of %d bytes are as they were at the checkpoint before", c.m.Tasks[0].PID, c.reused, c.layout.Total)
	}
}
