package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// flushAt is how many chunks the index keeps in memory before it writes a run.
const flushAt = 1 << 16

// loadIndex opens the runs and reads the footers of the packs that are in none: those
// sealed after the last flush, or all if the index was lost.
func (s *Store) loadIndex() error {
	list := s.listPacks
	if s.sh != nil {
		list = s.listShared
	}
	onDisk, err := list()
	if err != nil {
		return err
	}
	missing := map[disk.ID]*pack.Pack{}
	known := func(id disk.ID, size, created int64) *pack.Pack {
		p := onDisk[id]
		if p == nil {
			if p = missing[id]; p == nil {
				p = &pack.Pack{ID: id}
				p.Gone.Store(true)
				missing[id] = p
			}
		}
		p.Size, p.Created = size, created
		p.Sealed.Store(true)
		return p
	}
	if err := s.openRuns(known); err != nil {
		return err
	}
	if s.sh != nil {
		if err := s.sh.fetchRuns(onDisk, known); err != nil {
			return err
		}
	}
	if err := s.orderRuns(); err != nil {
		return err
	}
	var fresh []*pack.Pack
	for _, p := range onDisk {
		if !p.Sealed.Load() {
			fresh = append(fresh, p)
		}
	}
	s.packs = onDisk
	return s.absorb(fresh, false)
}

func (s *Store) listPacks() (map[disk.ID]*pack.Pack, error) {
	ents, err := os.ReadDir(filepath.Join(s.dir, packsName))
	if err != nil {
		return nil, err
	}
	m := make(map[disk.ID]*pack.Pack, len(ents))
	for _, e := range ents {
		if id, ok := disk.ParseID(e.Name(), disk.PackExt); ok {
			m[id] = &pack.Pack{ID: id}
		} else {
			s.o.Log(fmt.Sprintf("store %s: %s/%s is not ours; left alone", s.dir, packsName, e.Name()))
		}
	}
	return m, nil
}

// openRuns opens every run. A damaged one is removed: its packs know what was in it.
func (s *Store) openRuns(known func(disk.ID, int64, int64) *pack.Pack) error {
	dir := filepath.Join(s.dir, indexName)
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if _, ok := disk.ParseID(e.Name(), disk.RunExt); !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		r, err := openRun(path, known)
		if errors.Is(err, errRun) {
			s.o.Log(fmt.Sprintf("store: %v; making it again", err))
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
		if r != nil {
			s.ix.runs = append(s.ix.runs, r)
		}
	}
	return nil
}

// orderRuns puts the newest run first and drops what others have too.
func (s *Store) orderRuns() error {
	slices.SortFunc(s.ix.runs, func(a, b *run) int { return cmp.Compare(b.newest(), a.newest()) })
	return s.dropCovered()
}

func (r *run) newest() (t int64) {
	for _, p := range r.packs {
		t = max(t, p.Created)
	}
	return t
}

// dropCovered removes runs whose packs are all in another one: a merge that a crash cut
// short of removing what it had merged.
func (s *Store) dropCovered() error {
	for _, o := range slices.Clone(s.ix.runs) {
		if !slices.Contains(s.ix.runs, o) {
			continue // covered itself
		}
		have := make(map[*pack.Pack]struct{}, len(o.packs))
		for _, p := range o.packs {
			have[p] = struct{}{}
		}
		for _, r := range slices.Clone(s.ix.runs) {
			if r == o || !r.coveredBy(have) {
				continue
			}
			r.f.Close() // read only
			if err := os.Remove(r.path); err != nil {
				return err
			}
			s.ix.runs = slices.DeleteFunc(s.ix.runs, func(x *run) bool { return x == r })
		}
	}
	return nil
}

// coveredBy reports whether all packs of a run that exist are in have.
func (r *run) coveredBy(have map[*pack.Pack]struct{}) bool {
	for _, p := range r.packs {
		if _, ok := have[p]; !ok && !p.Gone.Load() {
			return false
		}
	}
	return true
}

// footerBatch is how many footers are in memory at once.
const footerBatch = 128

// absorb enters the chunks of packs that no run knows. held says that maint is.
func (s *Store) absorb(packs []*pack.Pack, held bool) error {
	for batch := range slices.Chunk(packs, footerBatch) {
		infos, errs := make([]*pack.Info, len(batch)), make([]error, len(batch))
		read := func(i int) { infos[i], errs[i] = s.readFooter(batch[i]) }
		if s.sh != nil {
			parallel(len(batch), read)
		} else {
			for i := range batch {
				read(i)
			}
		}
		for i, p := range batch {
			if err := s.absorbOne(p, infos[i], errs[i], held); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) absorbOne(p *pack.Pack, info *pack.Info, err error, held bool) error {
	var be *BucketError
	switch {
	case s.sh != nil && errors.Is(err, pack.ErrGone):
		s.packGone(p)
		return nil
	case errors.As(err, &be):
		return err // the next refresh tries again
	case err != nil:
		s.o.Log(fmt.Sprintf("store %s: pack %s: %v; left alone", s.dir, p.Name(), err))
		p.Sealed.Store(false) // see unreadable
		if errors.Is(err, pack.ErrCut) {
			s.condemnFooter(p)
		}
		return nil
	}
	p.Created = info.Created
	p.Sealed.Store(true)
	return s.enter(p, info.Entries, held)
}

func (s *Store) enter(p *pack.Pack, entries []pack.Entry, held bool) error {
	s.ix.mu.Lock()
	for i := range entries {
		e := &entries[i]
		if l, ok := s.ix.mem[e.Hash]; ok && s.ix.usable(l) && (l.P.Created > p.Created || p.Doomed.Load()) && !l.P.Doomed.Load() {
			continue
		}
		s.ix.mem[e.Hash] = pack.Loc{P: p, Off: e.Off, Stored: e.Stored, Raw: e.Raw, Codec: e.Codec}
	}
	s.ix.fresh[p] = struct{}{}
	n := len(s.ix.mem)
	s.ix.mu.Unlock()
	if n < 2*flushAt {
		return nil
	}
	if !held {
		if !s.maint.TryLock() {
			return nil // whoever has it flushes, or the next one here
		}
		defer s.maint.Unlock()
	}
	return s.flushIndex(false)
}

// readFooter reads what a pack says of itself and notes its size.
func (s *Store) readFooter(p *pack.Pack) (*pack.Info, error) {
	info, err := s.files.ReadFooter(s.sec, p)
	if err == pack.ErrElsewhere {
		return s.readSharedFooter(p)
	}
	return info, err
}

// flushLater writes the index in the background once memory holds n chunks.
func (s *Store) flushLater(n int) {
	s.ix.mu.RLock()
	due := len(s.ix.mem) >= n && len(s.ix.fresh) > 0
	s.ix.mu.RUnlock()
	// It stays set when the store is closed: no more of it then.
	if !due || !s.flushing.CompareAndSwap(false, true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return // Close does it
	}
	s.back.Add(1)
	go func() {
		defer s.back.Done()
		defer s.flushing.Store(false)
		s.maint.Lock()
		defer s.maint.Unlock()
		if err := s.flushIndex(false); err != nil {
			s.o.Log(fmt.Sprintf("store %s: writing the index: %v; it stays in memory", s.dir, err))
		}
		if s.sh == nil {
			return
		}
		if err := s.sh.shareRun(s.sh.ctx); err != nil {
			s.o.Log(fmt.Sprintf("store %s: sharing the index: %v; other machines read the packs instead", s.sh.b.URL, err))
		}
	}()
}
