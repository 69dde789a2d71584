package collect

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ckptfs/ckptfs/store/damage"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// What GC finds worth its while.
const (
	deadShare  = 4       // a pack is rewritten when 1/deadShare of it is dead
	smallPack  = 4 << 20 // bytes; packs below are joined
	smallPacks = 16      // when there are so many
)

// Collection is one run of GC.
type Collection struct {
	env     *Env
	ctx     context.Context
	workers int // goroutines that move chunks
	comps   []*codec.Compressor
	wanted  func(*pack.Pack, *pack.Entry) (bool, error) // which chunks of a chosen pack have to be moved
	fit     func(*pack.Pack, []pack.Entry) bool         // whether a chosen pack is what it seems; nil: all are
	packs   []*pack.Pack                                // those whose chunks are all in the runs; younger ones stay
	live    map[*pack.Pack]int64
	sealBuf []byte // where moved chunks are encrypted
	report  Report
	spared  map[*pack.Pack]error // packs with the only copy of a needed chunk, and what is wrong with it
	lost    bool                 // a needed chunk is nowhere

	// In a bucket:
	begun  int64 // fleet.Now
	now    int64 // by the server's clock, Unix ns
	leased []tree.Root
	known  map[*pack.Pack]struct{} // of packs
	marked []*pack.Pack            // what may go later
	// ripened packs are marked and would go now, were they not needed.
	ripened []*pack.Pack

	mu  sync.Mutex
	err error // why a pack of ours was lost
}

// New begins a run of GC.
func New(ctx context.Context, env *Env) *Collection {
	g := &Collection{env: env, ctx: ctx, begun: fleet.Now(), workers: 1}
	g.wanted = g.alive
	return g
}

// Run marks what is needed and removes what is not. It is called while nobody else replaces runs
// or removes packs, and with an index that is written out.
func (g *Collection) Run() (Report, error) {
	err := g.run()
	return g.report, err
}

func (g *Collection) run() error {
	x := g.env.Index
	g.packs = x.BeginMarks()
	g.known = make(map[*pack.Pack]struct{}, len(g.packs))
	for _, p := range g.packs {
		g.known[p] = struct{}{}
	}
	defer func() { x.EndMarks(g.packs) }() // by then it may have grown
	// From here on new references are marked by those who make them; the old ones follow.
	if err := g.markAll(); err != nil {
		return err
	}
	if err := g.count(); err != nil {
		return err
	}
	if g.env.Fleet != nil {
		if err := g.finishMarkers(); err != nil {
			return err
		}
		g.env.Fleet.AbortUploads(g.ctx, g.now)
	}
	chosen := append(g.choose(), g.strays()...)
	x.Condemn(chosen)
	// Now what is not marked in these packs cannot be referred to any more.
	if err := g.sweep(chosen); err != nil {
		return err
	}
	return g.markPacks(g.marked)
}

// markAll marks what ingests, images and readers refer to. The order matters: an ingest
// that commits meanwhile is among the images when those are listed.
func (g *Collection) markAll() error {
	for _, in := range g.env.Ingests() {
		if err := g.markIngest(in); err != nil {
			return err
		}
	}
	for _, rec := range g.env.Records() {
		var err error
		for _, t := range rec.Trees() {
			err = errors.Join(err, g.markTree(t))
		}
		if err != nil {
			return fmt.Errorf("cannot tell what image %q needs (remove it, or checkpoint the same again to heal it): %w", rec.Name, err)
		}
	}
	for _, t := range g.leased {
		if err := g.markTree(t); err != nil {
			return fmt.Errorf("cannot tell what another machine is reading: %w", err)
		}
	}
	return nil
}

func (g *Collection) markTree(t tree.Root) error {
	if t.Size == 0 {
		return nil
	}
	return g.env.WalkLeaves(t, g.seen, g.markLeaf)
}

// seen marks a node and reports whether GC was there before and follows it already.
func (g *Collection) seen(h *chunk.Hash) (bool, error) {
	if err := g.ctx.Err(); err != nil {
		return false, err
	}
	known, found, err := g.env.Mark(h, true)
	if err == nil && !found {
		err = g.relearn()
	}
	if err == nil && !found {
		err = g.env.Missing(h)
	}
	return known, err
}

// relearn ends this run of GC with ErrRelearned if a chunk is missing only from the index: the
// pack that has it must not be taken for dead.
func (g *Collection) relearn() error {
	again, err := g.env.LearnAgain(g.begun)
	if again {
		return ErrRelearned
	}
	return err
}

func (g *Collection) markLeaf(sp tree.Span) error {
	refs, err := g.env.Leaf(sp)
	if err != nil {
		return err
	}
	return g.markRefs(refs)
}

// markRefs marks chunks. To tell that one is damaged or missing is Verify's business.
func (g *Collection) markRefs(refs []tree.Ref) error {
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		_, found, err := g.env.Mark(&refs[i].Hash, false)
		if err == nil && !found {
			err = g.relearn()
		}
		if err != nil {
			return err
		}
		if !found {
			g.spare(&refs[i].Hash)
		}
	}
	return nil
}

// spare keeps a pack with a damaged chunk that is needed and nowhere else: the disk may
// recover, or somebody puts the file back.
func (g *Collection) spare(h *chunk.Hash) {
	l, ok := g.env.Index.AnyCopy(h)
	if !ok || l.P.Gone.Load() {
		g.lost = true
		return
	}
	if g.spared == nil {
		g.spared = map[*pack.Pack]error{}
	}
	g.spared[l.P] = &damage.ChunkError{Hash: *h, Pack: l.P.Name(), Err: codec.ErrMismatch}
}

// markIngest marks what a running ingest referred to before GC began; a later Put or Commit marks
// for itself.
func (g *Collection) markIngest(in Ingest) error {
	leaves, more := in.Needs()
	for _, sp := range leaves {
		known, err := g.seen(&sp.Hash)
		if err != nil {
			return err
		}
		if known {
			continue
		}
		if err := g.markLeaf(sp); err != nil {
			return err
		}
	}
	return g.markRefs(more)
}
