package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
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
		var re *runError
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
	s.ix.mu.RLock()
	w := &weigher{s: s, ctx: ctx, marks: newMarks(s.ix.runs), young: map[chunk.Hash]struct{}{}}
	s.ix.mu.RUnlock()
	var may []*imageRec
	first := true
	for _, im := range all {
		ours := p.ours(s.o.Host, im.rec)
		if ours && !im.rec.Kept && !first {
			may = append(may, im)
			continue
		}
		first = first && !ours
		if err := w.weigh(im.rec); err != nil {
			return nil, 0, err
		}
	}
	over = max(0, w.total-p.MaxSize)
	for i, im := range may {
		if over == 0 {
			if err := w.weigh(im.rec); err != nil {
				return nil, 0, err
			}
		}
		if w.total > p.MaxSize {
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
	marks *marks                  // alive: counted; walked: a node whose chunks are counted
	young map[chunk.Hash]struct{} // the same of chunks that no run knows yet
	total int64                   // bytes
}

// weigh adds what an image needs and no image before it did.
func (w *weigher) weigh(rec *record) error {
	for _, t := range rec.trees() {
		if t.Size == 0 {
			continue
		}
		if err := w.s.walkLeaves(span{t.Hash, t.Size}, t.Level, w.node, w.leaf); err != nil {
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
	r, pos, err := w.count(h)
	if r == nil || err != nil {
		return false, err
	}
	return w.marks.walked[r].set(pos), nil
}

func (w *weigher) leaf(sp span) error {
	refs, err := w.s.leaf(sp)
	if err != nil {
		return err
	}
	for i := range refs {
		if refs[i].zero {
			continue
		}
		if _, _, err := w.count(&refs[i].hash); err != nil {
			return err
		}
	}
	return nil
}

// count adds a chunk, unless it was added before, and says where in the runs it is. One that
// is lost takes no room.
func (w *weigher) count(h *chunk.Hash) (*run, int, error) {
	x := w.s.ix
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok := x.mem[*h]; ok && x.usable(l) {
		if _, known := w.young[*h]; !known {
			w.young[*h] = struct{}{}
			w.total += int64(l.Stored) + pack.EntryLen
		}
		return nil, 0, nil
	}
	l, r, pos, ok, err := x.findRun(h, func(l pack.Loc, _ *run, _ int) bool { return x.usable(l) })
	if !ok || err != nil {
		return nil, 0, err
	}
	if !w.marks.alive[r].set(pos) {
		w.total += int64(l.Stored) + pack.EntryLen
	}
	return r, pos, nil
}
