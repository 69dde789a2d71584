package index

import (
	"bytes"
	"errors"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

type memEntry struct {
	hash chunk.Hash
	loc  pack.Loc
}

// Flush writes what memory knows of sealed packs into a run and merges runs of similar size; all
// of them if all is set. A damaged run comes as a *DamagedRun. Only one may be called at a time.
func (x *Index) Flush(all bool) error {
	ents, packs := x.flushable()
	if len(packs) > 0 {
		r, err := x.writeRun(ents, packs)
		if err != nil {
			return err
		}
		x.flushed(r)
	}
	k := 1
	for total := 0; k <= len(x.runs); k++ {
		if k < len(x.runs) {
			total += x.runs[k-1].n
		}
		if k == len(x.runs) || (!all && x.runs[k].n > 2*total) {
			break
		}
	}
	if k < 2 && !(all && len(x.runs) == 1 && x.runs[0].stale()) {
		return nil
	}
	err := x.mergeRuns(k)
	if !all && disk.IsFull(err) {
		return nil // what there is serves as well, until there is room
	}
	return err
}

// stale reports whether a run lists packs that were removed.
func (r *run) stale() bool {
	return slices.ContainsFunc(r.packs, func(p *pack.Pack) bool { return p.Dropped.Load() })
}

func (x *Index) flushable() (ents []memEntry, packs []*pack.Pack) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for p := range x.fresh {
		if !p.Gone.Load() {
			packs = append(packs, p)
		}
	}
	for h, l := range x.mem {
		if _, ok := x.fresh[l.P]; ok && !l.P.Gone.Load() {
			ents = append(ents, memEntry{h, l})
		}
	}
	return ents, packs
}

func (x *Index) writeRun(ents []memEntry, packs []*pack.Pack) (*run, error) {
	slices.SortFunc(ents, func(a, b memEntry) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	w, err := newRunWriter(x.dir, packs, len(ents))
	if err != nil {
		return nil, err
	}
	for i := range ents {
		if _, ok := w.number[ents[i].loc.P]; !ok {
			continue // dropped meanwhile
		}
		if err := w.add(&ents[i].hash, &ents[i].loc); err != nil {
			w.abort()
			return nil, err
		}
	}
	return w.finish()
}

// flushed enters a run in place of what memory had of its packs. The map is made anew: Go
// gives no memory of a map back.
func (x *Index) flushed(r *run) {
	written := make(map[*pack.Pack]struct{}, len(r.packs))
	for _, p := range r.packs {
		written[p] = struct{}{}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs = append([]*run{r}, x.runs...)
	rest := map[chunk.Hash]pack.Loc{}
	for h, l := range x.mem {
		if _, ok := written[l.P]; !ok {
			rest[h] = l
		}
	}
	x.mem = rest
	for p := range written {
		delete(x.fresh, p)
	}
}

// mergeRuns makes one run of the k newest.
func (x *Index) mergeRuns(k int) error {
	old := slices.Clone(x.runs[:k])
	r, err := x.merge(old)
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.runs = append([]*run{r}, x.runs[k:]...)
	x.mu.Unlock()
	var errs []error
	for _, o := range old {
		o.f.Close() // read only
		errs = append(errs, os.Remove(o.path))
	}
	return errors.Join(errs...)
}

func (x *Index) merge(old []*run) (*run, error) {
	var packs []*pack.Pack
	entries := 0
	seen := map[*pack.Pack]bool{}
	for _, r := range old {
		entries += r.n
		for _, p := range r.packs {
			if !seen[p] && !p.Dropped.Load() {
				packs = append(packs, p)
			}
			seen[p] = true
		}
	}
	w, err := newRunWriter(x.dir, packs, entries)
	if err != nil {
		return nil, err
	}
	if err := x.mergeInto(w, old); err != nil {
		w.abort()
		return nil, err
	}
	return w.finish()
}

func (x *Index) mergeInto(w *runWriter, old []*run) error {
	var its []*runIter
	for _, r := range old {
		it := r.iter()
		more, err := it.next()
		if err != nil {
			return err
		}
		if more {
			its = append(its, it)
		}
	}
	for len(its) > 0 {
		low := its[0].hash
		for _, it := range its[1:] {
			if bytes.Compare(it.hash[:], low[:]) < 0 {
				low = it.hash
			}
		}
		best := pack.Loc{}
		for i := 0; i < len(its); i++ {
			if its[i].hash != low {
				continue
			}
			best = x.better(best, its[i].loc)
			more, err := its[i].next()
			if err != nil {
				return err
			}
			if !more {
				its = slices.Delete(its, i, i+1)
				i--
			}
		}
		if _, ok := w.number[best.P]; !ok {
			continue
		}
		if err := w.add(&low, &best); err != nil {
			return err
		}
	}
	return nil
}

// better chooses between two copies of a chunk, the newer one first. A copy that is lost
// is still better than none: errors can then name its pack.
func (x *Index) better(a, b pack.Loc) pack.Loc {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if a.P == nil || a.P.Dropped.Load() || (!x.usable(a) && x.usable(b)) || (x.usable(b) && a.P.Doomed.Load() && !b.P.Doomed.Load()) {
		return b
	}
	return a
}

// Drop takes a damaged run out and returns the packs that have to be entered anew; none if
// someone else did. An error says that the file stays.
func (x *Index) Drop(re *DamagedRun) (packs []*pack.Pack, err error) {
	x.mu.Lock()
	i := slices.Index(x.runs, re.run)
	if i >= 0 {
		x.runs = slices.Delete(slices.Clone(x.runs), i, i+1)
	}
	x.mu.Unlock()
	if i < 0 {
		return nil, nil
	}
	re.run.f.Close() // read only
	err = os.Remove(re.run.path)
	for _, p := range re.run.packs {
		if !p.Gone.Load() {
			packs = append(packs, p)
		}
	}
	return packs, err
}
