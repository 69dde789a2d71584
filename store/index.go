package store

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// place names a stored copy of a chunk.
type place struct {
	p   *pack.Pack
	off uint32
}

// index finds chunks. The newest are in memory, all others in sorted runs on disk, of
// which memory holds 200 bytes for every 85 chunks.
type index struct {
	reads  atomic.Uint64 // blocks that lookups read
	mu     sync.RWMutex
	mem    map[chunk.Hash]pack.Loc
	fresh  map[*pack.Pack]struct{} // sealed packs whose chunks only mem knows
	queued map[chunk.Hash]*job     // given to Put, not in a pack yet
	runs   []*run                  // newest first; a slice that is replaced, never changed
	bad    map[place]struct{}
	// badChanged: the list on disk does not say the same as bad.
	badChanged bool
	marks      *marks // what a running GC found alive
}

// marks tells what a running GC knows of every entry of the runs, a bit for each.
type marks struct {
	alive map[*run]bitmap // somebody refers to it
	// walked: GC itself got there and follows what the entry, as a node, refers to. A node
	// that is only alive was put by an ingest, whose chunks GC may not have come to yet.
	walked map[*run]bitmap
	// young packs have chunks that are needed and not in the runs yet: not for this GC.
	young pack.Set
}

type bitmap []uint32

func newMarks(runs []*run) *marks {
	m := &marks{alive: make(map[*run]bitmap, len(runs)), walked: make(map[*run]bitmap, len(runs))}
	for _, r := range runs {
		m.alive[r] = make(bitmap, (r.n+31)/32)
		m.walked[r] = make(bitmap, (r.n+31)/32)
	}
	return m
}

// set sets a bit and reports whether it was set before.
func (b bitmap) set(pos int) bool {
	bit := uint32(1) << (pos & 31)
	return atomic.OrUint32(&b[pos/32], bit)&bit != 0
}

func (b bitmap) has(pos int) bool { return atomic.LoadUint32(&b[pos/32])&(1<<(pos&31)) != 0 }

func newIndex() *index {
	return &index{mem: map[chunk.Hash]pack.Loc{}, fresh: map[*pack.Pack]struct{}{}, queued: map[chunk.Hash]*job{}, bad: map[place]struct{}{}}
}

// usable reports whether a copy may be read. Called with the lock held.
func (x *index) usable(l pack.Loc) bool {
	if l.P.Gone.Load() {
		return false
	}
	if len(x.bad) == 0 {
		return true
	}
	_, bad := x.bad[place{l.P, l.Off}]
	return !bad
}

// hit is a copy that a lookup found.
type hit struct {
	pack.Loc
	run *run // nil if memory has it
	pos int  // in run
}

// lookup finds a copy of a chunk that accept takes: the one in memory, or one in the runs,
// newest first. accept is called with the lock held, and a run is then still in use. The
// lock is not held while a block is read, so that a slow disk stops nobody who adds chunks.
func (x *index) lookup(h *chunk.Hash, accept func(hit) bool) (hit, bool, error) {
	x.mu.RLock()
	l, ok := x.mem[*h]
	ok = ok && x.usable(l) && accept(hit{Loc: l})
	runs := x.runs
	x.mu.RUnlock()
	if ok {
		return hit{Loc: l}, true, nil
	}
	for _, r := range runs {
		pos, l, ok, err := r.find(h, &x.reads)
		if err == nil && !ok {
			continue
		}
		if f := (hit{l, r, pos}); err == nil && x.accepted(f, accept) {
			return f, true, nil
		}
		// A merge has replaced the run, GC moved the chunk, or there is another copy.
		return x.lookupLocked(h, accept)
	}
	return hit{}, false, nil
}

func (x *index) accepted(f hit, accept func(hit) bool) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Contains(x.runs, f.run) && x.usable(f.Loc) && accept(f)
}

// lookupLocked is lookup with nothing changing meanwhile.
func (x *index) lookupLocked(h *chunk.Hash, accept func(hit) bool) (hit, bool, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok := x.mem[*h]; ok && x.usable(l) && accept(hit{Loc: l}) {
		return hit{Loc: l}, true, nil
	}
	l, r, pos, ok, err := x.findRun(h, func(l pack.Loc, r *run, pos int) bool { return x.usable(l) && accept(hit{l, r, pos}) })
	return hit{l, r, pos}, ok, err
}

// findRun looks a chunk up in the runs, newest first, for a copy that accept takes. Called
// with the lock held.
func (x *index) findRun(h *chunk.Hash, accept func(pack.Loc, *run, int) bool) (pack.Loc, *run, int, bool, error) {
	for _, r := range x.runs {
		pos, l, ok, err := r.find(h, &x.reads)
		if err != nil || (ok && accept(l, r, pos)) {
			return l, r, pos, ok, err
		}
	}
	return pack.Loc{}, nil, 0, false, nil
}

// find looks a chunk up for a reader.
func (x *index) find(h *chunk.Hash) (pack.Loc, bool, error) {
	f, ok, err := x.lookup(h, func(hit) bool { return true })
	return f.Loc, ok, err
}

// reuse looks a chunk up for an ingest that wants to refer to it. A running GC learns
// that the chunk is alive; what a GC is about to remove is not found.
func (x *index) reuse(h *chunk.Hash) (*pack.Pack, error) {
	f, ok, err := x.lookup(h, func(f hit) bool {
		if f.P.Doomed.Load() {
			return false
		}
		if x.marks == nil {
			return true
		}
		if f.run == nil {
			x.marks.young.Add(f.P)
			return true
		}
		alive := x.marks.alive[f.run]
		if f.P.Condemned.Load() {
			return alive.has(f.pos)
		}
		alive.set(f.pos)
		return true
	})
	if !ok || err != nil {
		return nil, err
	}
	return f.P, nil
}

// mark is how GC enters that a chunk is alive; it reports whether GC was there before. Chunks that
// only memory knows are younger than the GC and none of its business.
//
// node says that the caller goes on to what the chunk, as a node, refers to. Others do not set
// that bit: memory of a process may well have the very bytes of a node.
func (x *index) mark(h *chunk.Hash, node bool) (known, found bool, err error) {
	x.mu.RLock()
	queued := x.queued[*h] != nil
	x.mu.RUnlock()
	if queued {
		return false, true, nil
	}
	doomed := false // there is a copy, but somebody is about to remove it
	_, found, err = x.lookup(h, func(f hit) bool {
		switch {
		case f.P.Doomed.Load():
			doomed = true
			return false
		case f.run != nil:
			x.marks.alive[f.run].set(f.pos)
			known = node && x.marks.walked[f.run].set(f.pos)
		default:
			x.marks.young.Add(f.P)
		}
		return true
	})
	if err == nil && !found && doomed {
		return x.markDoomed(h, node)
	}
	return known, found, err
}

// markDoomed is mark for a chunk of which every copy is about to be removed, by us or by
// others: none of them may go now.
func (x *index) markDoomed(h *chunk.Hash, node bool) (known, found bool, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	l, ok := x.mem[*h]
	if found = ok && x.usable(l); found {
		x.marks.young.Add(l.P)
	}
	_, _, _, _, err = x.findRun(h, func(l pack.Loc, r *run, pos int) bool {
		if x.usable(l) {
			x.marks.alive[r].set(pos)
			known = node && x.marks.walked[r].set(pos)
			found = true
		}
		return false
	})
	return known, found, err
}

// memory is how many bytes the tables of the runs take.
func (x *index) memory() (n int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, r := range x.runs {
		n += r.memory()
	}
	return n
}

// enqueue joins an ingest to the job that is about to store h, or makes j that job. It
// reports whether j was taken; if not, the chunk will be stored or is, then in the pack p.
func (x *index) enqueue(h *chunk.Hash, j *job, in *Ingest) (taken bool, p *pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.join(h, in) {
		return false, nil
	}
	if l, ok := x.mem[*h]; ok && x.usable(l) && !l.P.Doomed.Load() {
		return false, l.P
	}
	x.queued[*h] = j
	return true, nil
}

// join makes an ingest wait for a chunk that is queued.
func (x *index) join(h *chunk.Hash, in *Ingest) bool {
	j := x.queued[*h]
	if j == nil {
		return false
	}
	in.jobs.Add(1)
	j.waiters = append(j.waiters, in)
	return true
}

// added enters where chunks stand now.
func (x *index) added(p *pack.Pack, es []pack.Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range es {
		x.mem[es[i].Hash] = es[i].Loc(p)
	}
}

func (x *index) unqueue(jobs []*job) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, j := range jobs {
		delete(x.queued, j.hash)
	}
}

// lose forgets the chunks of a pack.
func (x *index) lose(p *pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.fresh, p)
	for h, l := range x.mem {
		if l.P == p {
			delete(x.mem, h)
		}
	}
}

// absolve forgets that copies of a chunk were found damaged, and reports whether any was.
func (x *index) absolve(h *chunk.Hash) (any bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.bad) == 0 {
		return false
	}
	n := len(x.bad)
	if l, ok := x.mem[*h]; ok {
		delete(x.bad, place{l.P, l.Off})
	}
	_, _, _, _, _ = x.findRun(h, func(l pack.Loc, _ *run, _ int) bool { // who reads next meets the error
		delete(x.bad, place{l.P, l.Off})
		return false
	})
	any = len(x.bad) < n
	x.badChanged = x.badChanged || any
	return any
}

// fromQueue copies a chunk that is still on its way to a pack.
func (x *index) fromQueue(h *chunk.Hash, dst []byte) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	j := x.queued[*h]
	if j == nil || len(j.data) != len(dst) {
		return false
	}
	copy(dst, j.data)
	return true
}

// size returns the length of a chunk, wherever it is.
func (x *index) size(h *chunk.Hash) (int, bool, error) {
	x.mu.RLock()
	if j := x.queued[*h]; j != nil {
		defer x.mu.RUnlock()
		return len(j.data), true, nil
	}
	x.mu.RUnlock()
	l, ok, err := x.find(h)
	return int(l.Raw), ok, err
}

// close closes the runs.
func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, r := range x.runs {
		errs = append(errs, r.f.Close())
	}
	x.runs = nil
	return errors.Join(errs...)
}
