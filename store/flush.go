package store

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/index"
)

// flushIndex writes what memory knows of sealed packs into a run and merges runs of
// similar size; all of them if all is set. A damaged run is made again. Called with maint
// held.
func (s *Store) flushIndex(all bool) error {
	for {
		err := s.ix.Flush(all)
		if s.useReserve(err) {
			continue
		}
		var re *index.DamagedRun
		if !errors.As(err, &re) || !s.heal(re) {
			return err
		}
	}
}

// healIndex makes a damaged run again from its packs and reports whether it could. Not
// while the index is being replaced or packs removed.
func (s *Store) healIndex(err error) bool {
	var re *index.DamagedRun
	if !errors.As(err, &re) || !s.maint.TryLock() {
		return false
	}
	defer s.maint.Unlock()
	return s.heal(re)
}

// heal is healIndex with maint held.
func (s *Store) heal(re *index.DamagedRun) bool {
	s.o.Log(fmt.Sprintf("store %s: %v: making it again", s.dir, re))
	packs, err := s.ix.Drop(re)
	if err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.dir, err))
	}
	if err := s.absorb(packs, true); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.dir, err))
		return false
	}
	return true
}

// loadBad reads the list of damaged copies.
func (s *Store) loadBad() {
	if err := s.ix.LoadBad(s.sec, s.packs); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.dir, err))
	}
}

// saveBad writes that list if it changed. Called with maint held.
func (s *Store) saveBad() {
	if err := s.ix.SaveBad(s.sec); err != nil {
		s.o.Log(fmt.Sprintf("store %s: the list of damaged copies: %v", s.dir, err))
	}
}
