package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/pack"
)

// settleRun bounds what one Settle takes on, in bytes of packs: who wants to open, verify or
// collect waits for it.
const settleRun = 1 << 30

// Settle rewrites with zstd what ingests have stored fast: the oldest such packs, about a GiB
// of them, with workers goroutines. Ingests, readers and removes go on meanwhile. When ctx ends
// it stops between two chunks, and what was done is not done again. It may be called again for
// as long as the report says that packs are Unsettled. In a bucket there is nothing to do.
func (s *Store) Settle(ctx context.Context, workers int) (GCReport, error) {
	s.maint.Lock()
	defer s.maint.Unlock()
	report, err := s.healing(func() (GCReport, error) { return s.settle(ctx, workers) })
	report.Unsettled = len(s.unsettled())
	if err != nil {
		return report, fmt.Errorf("settling what was stored fast: %w", err)
	}
	return report, nil
}

func (s *Store) settle(ctx context.Context, workers int) (GCReport, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return GCReport{}, ErrClosed
	}
	if len(s.unsettled()) == 0 {
		return GCReport{}, ctx.Err()
	}
	if err := s.flushIndex(false); err != nil {
		return GCReport{}, err
	}
	defer s.saveBad()
	g := &settling{collection{s: s, ctx: ctx, workers: workers}}
	g.wanted, g.fit = g.current, g.storedFast
	err := g.sweep(g.choose())
	return g.report, err
}

// unsettled lists the sealed packs that Settle has to rewrite.
func (s *Store) unsettled() []*pack.Pack {
	if s.sh != nil {
		return nil
	}
	return slices.DeleteFunc(s.snapshotPacks(), func(p *pack.Pack) bool { return !p.Unsettled() })
}

// settling is a collection that does not ask what is needed: to walk all images would take
// longer than to rewrite what a checkpoint brought.
type settling struct{ collection }

// choose picks the packs that go, the oldest first. Only the runs know for sure where a chunk
// is if the copies that we make are lost.
func (g *settling) choose() []*pack.Pack {
	chosen := slices.DeleteFunc(g.s.ix.KnownPacks(), func(p *pack.Pack) bool { return !p.Unsettled() })
	slices.SortFunc(chosen, func(a, b *pack.Pack) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	size := int64(0)
	for i, p := range chosen {
		if size += p.Size; size >= settleRun {
			return chosen[:i+1]
		}
	}
	return chosen
}

// storedFast reports whether p is what its ID says, and whole. If it is damaged it is left to
// GC, which can tell whether anybody misses anything.
func (g *settling) storedFast(p *pack.Pack, entries []pack.Entry) bool {
	for i := range entries {
		e := &entries[i]
		if !codec.Provisional(e.Codec) && e.Codec != codec.Raw || g.s.ix.IsBad(p, e.Off) {
			return false
		}
	}
	return true
}

// current reports whether a chunk of p has to be moved: it has unless another sealed pack has
// it, as after a Settle that was stopped.
func (g *settling) current(p *pack.Pack, e *pack.Entry) (bool, error) { return g.s.ix.IsCurrent(p, e) }
