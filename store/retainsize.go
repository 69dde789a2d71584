package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// pruneSize removes the oldest images until the others need no more than p.MaxSize. What an
// image would free cannot be told from the image alone, since others refer to its chunks; so
// those that stay anyway are added up first, then the rest from the newest on, each chunk
// once. Where that passes MaxSize everything older goes.
func (s *Store) pruneSize(ctx context.Context, p *Policy, rep *PruneReport) error {
	s.maint.Lock()
	defer s.maint.Unlock()
	if s.packed()-s.dead.Load() <= p.MaxSize {
		return nil // no need to look any closer
	}
	for {
		gone, over, err := s.tooMuch(ctx, p)
		var re *index.DamagedRun
		if errors.As(err, &re) && s.heal(re) {
			continue
		}
		if err != nil {
			return err
		}
		rep.Over = over
		why := fmt.Sprintf("the images need more than %d bytes and it was the oldest", p.MaxSize)
		for _, im := range gone {
			if err := s.pruneOne(ctx, p, im, why, rep); err != nil {
				return err
			}
		}
		return nil
	}
}

// packed returns the bytes of all packs.
func (s *Store) packed() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.packs {
		n += p.Size
	}
	return n
}

// tooMuch lists what has to go, the oldest first, and how many bytes what stays is still
// too large. Called with maint held.
func (s *Store) tooMuch(ctx context.Context, p *Policy) (gone []*imageRec, over int64, err error) {
	if err := s.flushIndex(false); err != nil {
		return nil, 0, err
	}
	all, err := s.everyImage()
	if err != nil {
		return nil, 0, err
	}
	w := &weigher{s: s, ctx: ctx, tally: s.ix.NewTally()}
	var may []*imageRec
	first := true
	for _, im := range all {
		ours := p.Ours(s.o.Host, im.rec)
		if ours && !im.rec.Kept && !first {
			may = append(may, im)
			continue
		}
		first = first && !ours
		if err := w.weigh(im.rec); err != nil {
			return nil, 0, err
		}
	}
	over = max(0, w.tally.Total-p.MaxSize)
	for i, im := range may {
		if over == 0 {
			if err := w.weigh(im.rec); err != nil {
				return nil, 0, err
			}
		}
		if w.tally.Total > p.MaxSize {
			for j := len(may) - 1; j >= i; j-- {
				gone = append(gone, may[j])
			}
			return gone, over, nil
		}
	}
	return nil, over, nil
}

// weigher adds up what images take in packs, each chunk once.
type weigher struct {
	s     *Store
	ctx   context.Context
	tally *index.Tally
}

// weigh adds what an image needs and no image before it did.
func (w *weigher) weigh(rec *record.Record) error {
	for _, t := range rec.Trees() {
		if t.Size == 0 {
			continue
		}
		if err := w.s.walkLeaves(t.Span(), t.Level, w.node, w.leaf); err != nil {
			return fmt.Errorf("cannot tell what image %q takes: %w", rec.Name, err)
		}
	}
	return nil
}

// node counts a node and reports whether it was walked before.
func (w *weigher) node(h *chunk.Hash) (bool, error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	return w.tally.Node(h)
}

func (w *weigher) leaf(sp tree.Span) error {
	refs, err := w.s.leaf(sp)
	if err != nil {
		return err
	}
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		if err := w.tally.Add(&refs[i].Hash); err != nil {
			return err
		}
	}
	return nil
}
