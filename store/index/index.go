// Package index finds the packs that chunks are in: the newest by tables in memory, all others by
// sorted runs on disk, which are merged as they grow. It also knows which copies are damaged, and
// notes for GC what is alive. All of it can be made again from the packs.
package index

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

// Index finds chunks. The newest are in memory, all others in sorted runs on disk, of
// which memory holds 200 bytes for every 85 chunks.
type Index struct {
	dir   string        // of the runs
	reads atomic.Uint64 // blocks that lookups read
	mu    sync.RWMutex
	mem   map[chunk.Hash]pack.Loc
	fresh map[*pack.Pack]struct{} // sealed packs whose chunks only mem knows
	runs  []*run                  // newest first; a slice that is replaced, never changed
	bad   map[place]struct{}
	// badChanged: the list on disk does not say the same as bad.
	badChanged bool
	marks      *marks // what a running GC found alive
}

// New makes an empty index whose runs are in dir.
func New(dir string) *Index {
	return &Index{dir: dir, mem: map[chunk.Hash]pack.Loc{}, fresh: map[*pack.Pack]struct{}{}, bad: map[place]struct{}{}}
}

// usable reports whether a copy may be read. Called with the lock held.
func (x *Index) usable(l pack.Loc) bool {
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
func (x *Index) lookup(h *chunk.Hash, accept func(hit) bool) (hit, bool, error) {
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

func (x *Index) accepted(f hit, accept func(hit) bool) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Contains(x.runs, f.run) && x.usable(f.Loc) && accept(f)
}

// lookupLocked is lookup with nothing changing meanwhile.
func (x *Index) lookupLocked(h *chunk.Hash, accept func(hit) bool) (hit, bool, error) {
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
func (x *Index) findRun(h *chunk.Hash, accept func(pack.Loc, *run, int) bool) (pack.Loc, *run, int, bool, error) {
	for _, r := range x.runs {
		pos, l, ok, err := r.find(h, &x.reads)
		if err != nil || (ok && accept(l, r, pos)) {
			return l, r, pos, ok, err
		}
	}
	return pack.Loc{}, nil, 0, false, nil
}

// Find looks a chunk up for a reader.
func (x *Index) Find(h *chunk.Hash) (pack.Loc, bool, error) {
	f, ok, err := x.lookup(h, func(hit) bool { return true })
	return f.Loc, ok, err
}

// Reuse looks a chunk up for an ingest that wants to refer to it. A running GC learns
// that the chunk is alive; what a GC is about to remove is not found.
func (x *Index) Reuse(h *chunk.Hash) (*pack.Pack, error) {
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

// memory is how many bytes the tables of the runs take.
func (x *Index) memory() (n int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, r := range x.runs {
		n += r.memory()
	}
	return n
}

// Added enters where chunks stand now.
func (x *Index) Added(p *pack.Pack, es []pack.Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range es {
		x.mem[es[i].Hash] = es[i].Loc(p)
	}
}

// Lose forgets the chunks of a pack.
func (x *Index) Lose(p *pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.fresh, p)
	for h, l := range x.mem {
		if l.P == p {
			delete(x.mem, h)
		}
	}
}

// Absolve forgets that copies of a chunk were found damaged, and reports whether any was.
func (x *Index) Absolve(h *chunk.Hash) (any bool) {
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

// Close closes the runs.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, r := range x.runs {
		errs = append(errs, r.f.Close())
	}
	x.runs = nil
	return errors.Join(errs...)
}

// InMemory returns the pack of a chunk that memory knows and something new may refer to.
func (x *Index) InMemory(h *chunk.Hash) *pack.Pack {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok := x.mem[*h]; ok && x.usable(l) && !l.P.Doomed.Load() {
		return l.P
	}
	return nil
}

// Sealed says that a pack of which memory has the chunks may be written into a run.
func (x *Index) Sealed(p *pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fresh[p] = struct{}{}
}

// Enter adds the chunks of a sealed pack, as its footer has them, and says how many memory has then.
func (x *Index) Enter(p *pack.Pack, entries []pack.Entry) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		if l, ok := x.mem[e.Hash]; ok && x.usable(l) && (l.P.Created > p.Created || p.Doomed.Load()) && !l.P.Doomed.Load() {
			continue
		}
		x.mem[e.Hash] = e.Loc(p)
	}
	x.fresh[p] = struct{}{}
	return len(x.mem)
}

// Due reports whether memory holds n chunks and can write some of them.
func (x *Index) Due(n int) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.mem) >= n && len(x.fresh) > 0
}

// Chunks is how many entries there are.
func (x *Index) Chunks() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := int64(len(x.mem))
	for _, r := range x.runs {
		n += int64(r.n)
	}
	return n
}

// AnyCopy looks for a copy of a chunk, however bad it is. It may be in a pack that is gone.
func (x *Index) AnyCopy(h *chunk.Hash) (l pack.Loc, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok = x.mem[*h]; ok {
		return l, true
	}
	_, _, _, ok, _ = x.findRun(h, func(c pack.Loc, _ *run, _ int) bool { // an error here adds nothing
		l = c
		return true
	})
	return l, ok
}
