package store

import (
	"context"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Where fresh means that asking again would only cost.
const (
	packsFresh  = 5 * time.Second // before a Begin
	imagesFresh = time.Second     // before a List
)

// openShared connects to the bucket.
func (s *Store) openShared(location string) (err error) {
	s.sh, s.lock, err = fleet.Open(fleet.Config{Location: location, Cache: s.o.Cache, Patience: s.o.Patience, Attempt: s.o.attempt,
		Grace: s.o.Grace, Sec: s.sec, Log: s.o.Log}, (*local)(s))
	if err == nil {
		s.dir = s.sh.Dir
	}
	return err
}

// listShared lists the packs of the bucket, with what is about to be removed.
func (s *Store) listShared() (map[disk.ID]*pack.Pack, error) {
	m := map[disk.ID]*pack.Pack{}
	err := s.sh.ListPacks(func(id disk.ID, size int64) {
		p := &pack.Pack{ID: id, Size: size, Created: id.Time().UnixNano()}
		p.Doomed.Store(s.doomed[id])
		m[id] = p
	})
	if err != nil {
		return nil, err
	}
	return m, s.files.Cache.AdoptOld(m)
}

// bound makes a context of a caller end with the store: Close does not wait for a bucket that
// does not answer.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.sh == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.sh.Ctx, func() { cancel(context.Cause(s.sh.Ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// local is a Store as its part in a fleet needs it.
type local Store

func (s *local) Compare(found map[disk.ID]int64, all bool) (fresh, missing []*pack.Pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, size := range found {
		// A second *pack for one of ours would not hear of markers.
		if _, ours := s.writing[id]; s.packs[id] == nil && !ours {
			p := &pack.Pack{ID: id, Size: size, Created: id.Time().UnixNano()}
			p.Doomed.Store(s.doomed[id])
			s.packs[id] = p
			fresh = append(fresh, p)
		}
	}
	if !all {
		return fresh, nil
	}
	for id, p := range s.packs {
		if _, ok := found[id]; !ok {
			missing = append(missing, p)
		}
	}
	return fresh, missing
}

func (s *local) Absorb(fresh []*pack.Pack) error {
	if err := (*Store)(s).absorb(fresh, false); err != nil {
		return err
	}
	(*Store)(s).flushLater(flushAt)
	return nil
}

func (s *local) Gone(p *pack.Pack) { (*Store)(s).packGone(p) }

// packGone forgets a pack that another machine removed.
func (s *Store) packGone(p *pack.Pack) {
	s.mu.Lock()
	delete(s.packs, p.ID)
	s.mu.Unlock()
	_ = s.files.Drop(p) // only a cached copy, which Open removes too
	s.sh.Holes.Store(true)
}

func (s *local) Has(id disk.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.packs[id] != nil
}

func (s *local) Doom(ids map[disk.ID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doomed = ids
	for id, p := range s.packs {
		p.Doomed.Store(ids[id])
	}
}

func (s *local) Marked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.doomed) > 0
}

func (s *local) Roots() (roots []tree.Root) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.readers {
		roots = append(roots, r.rec.Trees()...)
	}
	return roots
}

func (s *local) SetImages(records map[disk.ID]fleet.Fetched) { (*Store)(s).setImages(records) }

func (l *local) KeepUp() {
	s := (*Store)(l)
	live := s.live()
	if len(live) == 0 {
		return
	}
	if err := s.sh.Refresh(s.sh.Ctx, false); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", s.sh.Bucket.URL, err))
		if s.sh.InTouch() == nil {
			return // the next round may have more luck
		}
	}
	for _, in := range live {
		in.putting.Lock()
		// To get the lock may have taken long, if a Put waited for the bucket.
		err := s.sh.Freshen(s.sh.Ctx, fleet.Ago(s.sh.Grace/2))
		if err == nil && in.usable() == nil {
			err = in.rescue()
		}
		in.fail(err)
		in.putting.Unlock()
	}
}
