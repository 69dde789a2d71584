package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

type memEntry struct {
	hash chunk.Hash
	loc  pack.Loc
}

// flushIndex writes what memory knows of sealed packs into a run and merges runs of
// similar size; all of them if all is set. A damaged run is made again. Called with maint
// held.
func (s *Store) flushIndex(all bool) error {
	for {
		err := s.flushOnce(all)
		if s.useReserve(err) {
			continue
		}
		var re *runError
		if !errors.As(err, &re) || !s.heal(re) {
			return err
		}
	}
}

func (s *Store) flushOnce(all bool) error {
	ents, packs := s.ix.flushable()
	if len(packs) > 0 {
		r, err := s.writeRun(ents, packs)
		if err != nil {
			return err
		}
		s.ix.flushed(r)
	}
	k := 1
	for total := 0; k <= len(s.ix.runs); k++ {
		if k < len(s.ix.runs) {
			total += s.ix.runs[k-1].n
		}
		if k == len(s.ix.runs) || (!all && s.ix.runs[k].n > 2*total) {
			break
		}
	}
	if k < 2 && !(all && len(s.ix.runs) == 1 && s.ix.runs[0].stale()) {
		return nil
	}
	err := s.mergeRuns(k)
	if !all && isFull(err) {
		return nil // what there is serves as well, until there is room
	}
	return err
}

// stale reports whether a run lists packs that were removed.
func (r *run) stale() bool {
	return slices.ContainsFunc(r.packs, func(p *pack.Pack) bool { return p.Dropped.Load() })
}

func (x *index) flushable() (ents []memEntry, packs []*pack.Pack) {
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

func (s *Store) writeRun(ents []memEntry, packs []*pack.Pack) (*run, error) {
	slices.SortFunc(ents, func(a, b memEntry) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	w, err := newRunWriter(filepath.Join(s.dir, indexName), packs, len(ents))
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
func (x *index) flushed(r *run) {
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
func (s *Store) mergeRuns(k int) error {
	old := slices.Clone(s.ix.runs[:k])
	r, err := s.merge(old)
	if err != nil {
		return err
	}
	s.ix.mu.Lock()
	s.ix.runs = append([]*run{r}, s.ix.runs[k:]...)
	s.ix.mu.Unlock()
	var errs []error
	for _, o := range old {
		o.f.Close() // read only
		errs = append(errs, os.Remove(o.path))
	}
	return errors.Join(errs...)
}

func (s *Store) merge(old []*run) (*run, error) {
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
	w, err := newRunWriter(filepath.Join(s.dir, indexName), packs, entries)
	if err != nil {
		return nil, err
	}
	if err := s.mergeInto(w, old); err != nil {
		w.abort()
		return nil, err
	}
	return w.finish()
}

func (s *Store) mergeInto(w *runWriter, old []*run) error {
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
			best = s.ix.better(best, its[i].loc)
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
func (x *index) better(a, b pack.Loc) pack.Loc {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if a.P == nil || a.P.Dropped.Load() || (!x.usable(a) && x.usable(b)) || (x.usable(b) && a.P.Doomed.Load() && !b.P.Doomed.Load()) {
		return b
	}
	return a
}

// healIndex makes a damaged run again from its packs and reports whether it could. Not
// while the index is being replaced or packs removed.
func (s *Store) healIndex(err error) bool {
	var re *runError
	if !errors.As(err, &re) || !s.maint.TryLock() {
		return false
	}
	defer s.maint.Unlock()
	return s.heal(re)
}

// heal is healIndex with maint held.
func (s *Store) heal(re *runError) bool {
	s.o.Log(fmt.Sprintf("store %s: %v: making it again", s.dir, re))
	s.ix.mu.Lock()
	i := slices.Index(s.ix.runs, re.run)
	if i >= 0 {
		s.ix.runs = slices.Delete(slices.Clone(s.ix.runs), i, i+1)
	}
	s.ix.mu.Unlock()
	if i < 0 {
		return true // someone else did it
	}
	re.run.f.Close() // read only
	if err := os.Remove(re.run.path); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.dir, err))
	}
	var packs []*pack.Pack
	for _, p := range re.run.packs {
		if !p.Gone.Load() {
			packs = append(packs, p)
		}
	}
	if err := s.absorb(packs, true); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.dir, err))
		return false
	}
	return true
}
