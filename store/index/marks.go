package index

import (
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

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

// Mark is how GC enters that a chunk is alive; it reports whether GC was there before. Chunks that
// only memory knows are younger than the GC and none of its business.
//
// node says that the caller goes on to what the chunk, as a node, refers to. Others do not set
// that bit: memory of a process may well have the very bytes of a node.
func (x *Index) Mark(h *chunk.Hash, node bool) (known, found bool, err error) {
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
func (x *Index) markDoomed(h *chunk.Hash, node bool) (known, found bool, err error) {
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

// BeginMarks begins a GC: from now on every reference that is made marks its chunk. It returns the
// packs that the runs know.
func (x *Index) BeginMarks() []*pack.Pack {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.marks = newMarks(x.runs)
	return x.runPacks()
}

// EndMarks ends a GC. packs are not condemned any more.
func (x *Index) EndMarks(packs []*pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.marks = nil
	for _, p := range packs {
		p.Condemned.Store(false)
	}
}

// Condemn says which packs GC is about to rewrite: what is not marked there is not found by reuse
// any more.
func (x *Index) Condemn(packs []*pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range packs {
		p.Condemned.Store(true)
	}
}

// EachAlive calls fn with every entry of the runs that is marked. Called while nobody replaces runs.
func (x *Index) EachAlive(fn func(l *pack.Loc)) error {
	for _, r := range x.runs {
		it := r.iter()
		for {
			more, err := it.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if x.marks.alive[r].has(it.pos) {
				fn(&it.loc)
			}
		}
	}
	return nil
}

// IsYoung reports whether a pack has chunks that are needed and in no run yet.
func (x *Index) IsYoung(p *pack.Pack) bool { return x.marks.young.Has(p) }

// IsAlive reports whether the copy of a chunk in p is the one that is needed.
func (x *Index) IsAlive(p *pack.Pack, e *pack.Entry) (bool, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, r, pos, ok, err := x.findRun(&e.Hash, func(l pack.Loc, _ *run, _ int) bool { return l.P == p && l.Off == e.Off })
	return ok && x.marks.alive[r].has(pos), err
}

// IsCurrent reports whether no other sealed pack has a chunk of p.
func (x *Index) IsCurrent(p *pack.Pack, e *pack.Entry) (bool, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok := x.mem[e.Hash]; ok && l.P != p && x.usable(l) {
		if _, sealed := x.fresh[l.P]; sealed {
			return false, nil
		}
	}
	l, _, _, ok, err := x.findRun(&e.Hash, func(l pack.Loc, _ *run, _ int) bool { return x.usable(l) })
	return !ok || l.P == p && l.Off == e.Off, err
}

// KnownPacks lists the packs that the runs know.
func (x *Index) KnownPacks() []*pack.Pack {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.runPacks()
}

// runPacks lists the packs that the runs know. Called with mu held.
func (x *Index) runPacks() (list []*pack.Pack) {
	seen := map[*pack.Pack]bool{}
	for _, r := range x.runs {
		for _, p := range r.packs {
			if !seen[p] && !p.Gone.Load() {
				list = append(list, p)
			}
			seen[p] = true
		}
	}
	return list
}

// EntriesOf lists what the index knows of a pack whose footer is lost.
func (x *Index) EntriesOf(p *pack.Pack) (list []pack.Entry) {
	add := func(h chunk.Hash, l pack.Loc) {
		if l.P == p {
			list = append(list, pack.Entry{Hash: h, Off: l.Off, Stored: l.Stored, Raw: l.Raw, Codec: l.Codec})
		}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	for h, l := range x.mem {
		add(h, l)
	}
	for _, r := range x.runs {
		it := r.iter()
		for more, err := it.next(); more && err == nil; more, err = it.next() {
			add(it.hash, it.loc)
		}
	}
	return list
}
