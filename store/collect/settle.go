package collect

import (
	"bytes"
	"context"
	"slices"

	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/pack"
)

// settleRun bounds what one Settle takes on, in bytes of packs: who wants to open, verify or
// collect waits for it.
const settleRun = 1 << 30

// settling is a collection that does not ask what is needed: to walk all images would take
// longer than to rewrite what a checkpoint brought.
type settling struct{ Collection }

// Settle rewrites packs that were stored fast, with workers goroutines.
func Settle(ctx context.Context, env *Env, workers int) (Report, error) {
	g := &settling{Collection{env: env, ctx: ctx, workers: workers}}
	g.wanted, g.fit = g.current, g.storedFast
	err := g.sweep(g.choose())
	return g.report, err
}

// choose picks the packs that go, the oldest first. Only the runs know for sure where a chunk
// is if the copies that we make are lost.
func (g *settling) choose() []*pack.Pack {
	chosen := slices.DeleteFunc(g.env.Index.KnownPacks(), func(p *pack.Pack) bool { return !p.Unsettled() })
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
		if !codec.Provisional(e.Codec) && e.Codec != codec.Raw || g.env.Index.IsBad(p, e.Off) {
			return false
		}
	}
	return true
}

// current reports whether a chunk of p has to be moved: it has unless another sealed pack has
// it, as after a Settle that was stopped.
func (g *settling) current(p *pack.Pack, e *pack.Entry) (bool, error) {
	return g.env.Index.IsCurrent(p, e)
}
