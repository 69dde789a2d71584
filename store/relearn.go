package store

import (
	"errors"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
)

// The index keeps one copy of a chunk that stands in several packs. Of two copies in a
// bucket it may keep another one than the machine whose GC then removes the copy that is
// kept here: a hole, although the bucket has the chunk. Who misses a chunk relearns.

// relearning is when what the index lost was last looked for.
type relearning struct {
	sync.Mutex       // held meanwhile
	last       int64 // fleet.Now of the end
}

// learnAgain looks into all packs for chunks that the index lost, if a pack was removed since
// that was done last. begun is the fleet.Now at which the caller began to look; again says that
// it should look once more.
func (s *Store) learnAgain(begun int64, held bool) (again bool, err error) {
	if s.sh == nil {
		return false, nil
	}
	s.relearn.Lock()
	defer s.relearn.Unlock()
	if !s.sh.Holes.Swap(false) {
		return s.relearn.last >= begun, nil
	}
	for batch := range slices.Chunk(s.snapshotPacks(), footerBatch) {
		infos, errs := make([]*pack.Info, len(batch)), make([]error, len(batch))
		bucket.Parallel(len(batch), func(i int) { infos[i], errs[i] = s.readFooter(batch[i]) })
		for i, p := range batch {
			err = errs[i]
			if err == nil {
				err = s.fillHoles(p, infos[i].Entries, held)
			}
			var be *BucketError
			if errors.As(err, &be) && !errors.Is(err, pack.ErrGone) || err != nil && errs[i] == nil {
				s.sh.Holes.Store(true)
				return false, err
			}
		}
	}
	s.relearn.last = fleet.Now()
	return true, nil
}

// fillHoles enters a pack again if the index lacks anything of it. It enters all of it:
// the packs that a run names are whole in it.
func (s *Store) fillHoles(p *pack.Pack, entries []pack.Entry, held bool) error {
	for i := range entries {
		_, ok, err := s.ix.Find(&entries[i].Hash)
		if err != nil && s.healIndex(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !ok && !s.ix.IsBad(p, entries[i].Off) {
			return s.enter(p, entries, held)
		}
	}
	return nil
}
