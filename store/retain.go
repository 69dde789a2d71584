package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/record"
)

// Pruned is an image that Prune removed.
type Pruned struct {
	Image
	Why string // which rules did not keep it
}

// PruneReport tells what a Prune did.
type PruneReport struct {
	Removed []Pruned
	Over    int64 // bytes that images need beyond MaxSize although no more of them may go
}

// Ratio returns how many bytes a reader sees for one that the image brought into the store;
// 0 if it brought none.
func (im *Image) Ratio() float64 {
	if im.Unique == 0 {
		return 0
	}
	return float64(im.Size) / float64(im.Unique)
}

// SetSeries says what the image is one of many of, for Policy.KeepLast. It must be called
// before Commit by who calls Commit.
func (in *Ingest) SetSeries(name string) { in.series = record.Label(name) }

// Prune removes images by the rules of p. Their space is freed by the next GC, and who has
// one of them open reads on. When it fails, what it reports is gone and the rest is not.
func (s *Store) Prune(ctx context.Context, p Policy) (PruneReport, error) {
	rep, err := s.prune(ctx, p, time.Now())
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return rep, err
}

func (s *Store) prune(ctx context.Context, p Policy, now time.Time) (rep PruneReport, err error) {
	if err := s.lookAround(fleet.Now()); err != nil {
		return rep, err
	}
	if p.KeepLast > 0 || p.KeepWithin > 0 {
		all, err := s.everyImage()
		if err != nil {
			return rep, err
		}
		for i, why := range p.TooOld(s.o.Host, recordsOf(all), now) {
			if why == "" {
				continue
			}
			if err := s.pruneOne(ctx, &p, all[i], why, &rep); err != nil {
				return rep, err
			}
		}
	}
	if p.MaxSize > 0 {
		err = s.pruneSize(ctx, &p, &rep)
	}
	return rep, err
}

// everyImage lists all images, the newest first.
func (s *Store) everyImage() ([]*imageRec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	all := make([]*imageRec, 0, len(s.images))
	for _, im := range s.images {
		all = append(all, im)
	}
	slices.SortFunc(all, func(a, b *imageRec) int {
		return cmp.Or(cmp.Compare(b.rec.Created, a.rec.Created), cmp.Compare(b.rec.Name, a.rec.Name))
	})
	return all, nil
}

// pruneOne removes an image, unless it is not any more what it was when that was decided.
func (s *Store) pruneOne(ctx context.Context, p *Policy, im *imageRec, why string, rep *PruneReport) error {
	if p.Spare != nil && p.Spare(im.rec.Name) {
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if gone, err := s.removeSame(ctx, im); !gone || err != nil {
		return err
	}
	rep.Removed = append(rep.Removed, Pruned{imageOf(im.rec), why})
	return nil
}

// removeSame removes an image if it is still listed, and under the same name.
func (s *Store) removeSame(ctx context.Context, im *imageRec) (bool, error) {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return false, ErrClosed
	case s.images[im.rec.Name] != im:
		s.mu.Unlock()
		return false, nil
	case s.sh != nil: // not with the lock held: a bucket takes its time
		s.mu.Unlock()
		return true, s.forgetShared(ctx, im)
	}
	defer s.mu.Unlock()
	return true, s.remove(im)
}

// recordsOf lists the records of images.
func recordsOf(images []*imageRec) []*record.Record {
	list := make([]*record.Record, len(images))
	for i, im := range images {
		list[i] = im.rec
	}
	return list
}
