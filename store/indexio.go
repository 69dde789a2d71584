package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
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
	if err := s.ix.Open(known, s.o.Log); err != nil {
		return err
	}
	if s.sh != nil {
		if err := s.sh.FetchRuns(s.ix, onDisk, known); err != nil {
			return err
		}
	}
	if err := s.ix.Order(); err != nil {
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
	ents, err := os.ReadDir(filepath.Join(s.dir, layout.Packs))
	if err != nil {
		return nil, err
	}
	m := make(map[disk.ID]*pack.Pack, len(ents))
	for _, e := range ents {
		if id, ok := disk.ParseID(e.Name(), disk.PackExt); ok {
			m[id] = &pack.Pack{ID: id}
		} else {
			s.o.Log(fmt.Sprintf("store %s: %s/%s is not ours; left alone", s.dir, layout.Packs, e.Name()))
		}
	}
	return m, nil
}

// footerBatch is how many footers are in memory at once.
const footerBatch = 128

// absorb enters the chunks of packs that no run knows. held says that maint is.
func (s *Store) absorb(packs []*pack.Pack, held bool) error {
	for batch := range slices.Chunk(packs, footerBatch) {
		infos, errs := make([]*pack.Info, len(batch)), make([]error, len(batch))
		read := func(i int) { infos[i], errs[i] = s.readFooter(batch[i]) }
		if s.sh != nil {
			bucket.Parallel(len(batch), read)
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
			s.ix.CondemnFooter(p)
		}
		return nil
	}
	p.Created = info.Created
	p.Sealed.Store(true)
	return s.enter(p, info.Entries, held)
}

func (s *Store) enter(p *pack.Pack, entries []pack.Entry, held bool) error {
	n := s.ix.Enter(p, entries)
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
	// It stays set when the store is closed: no more of it then.
	if !s.ix.Due(n) || !s.flushing.CompareAndSwap(false, true) {
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
		if err := s.sh.ShareRun(s.sh.Ctx, s.ix); err != nil {
			s.o.Log(fmt.Sprintf("store %s: sharing the index: %v; other machines read the packs instead", s.sh.Bucket.URL, err))
		}
	}()
}
