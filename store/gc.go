package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// GCReport tells what a GC did.
type GCReport struct {
	Packs   int   // packs removed
	Written int   // packs written with what was alive in removed ones
	Freed   int64 // bytes fewer in packs than before
	Live    int64 // bytes of chunks that are needed, with their entries in footers
	Dead    int64 // bytes of chunks that are not, and stay in packs where little is dead
	Pending int   // packs of a bucket that a later GC removes, when the grace time is over
	// Again is how long that takes, 0 if nothing is pending.
	Again time.Duration
	Kept  []string // packs that should have gone but could not be read, and why

	// Live and Dead are as they were before this.
	Settled     int   // packs of what ingests stored fast that were rewritten, see Settle
	SettledFrom int64 // bytes of their chunks before
	SettledTo   int64 // and after
	Unsettled   int   // packs that Settle has still to do
}

// What GC finds worth its while.
const (
	deadShare  = 4       // a pack is rewritten when 1/deadShare of it is dead
	smallPack  = 4 << 20 // bytes; packs below are joined
	smallPacks = 16      // when there are so many
)

// GC removes what no image, open Reader or running ingest needs: it drops packs that are
// dead and rewrites those that are mostly dead or tiny. Ingests and readers go on
// meanwhile. It refuses to remove anything while it cannot tell what an image needs,
// that is while a record or a chunk list is damaged. On an error everything that was
// needed is still there.
func (s *Store) GC(ctx context.Context) (GCReport, error) {
	s.maint.Lock()
	defer s.maint.Unlock()
	ctx, cancel := s.bound(ctx)
	defer cancel()
	report, err := s.healing(func() (GCReport, error) { return s.collect(ctx) })
	report.Unsettled = len(s.unsettled())
	if report.Pending > 0 {
		report.Again = s.sh.grace + 2*time.Second
	}
	if err != nil {
		return report, fmt.Errorf("gc: %w", err)
	}
	return report, nil
}

// healing does something again for as long as damaged runs are in its way that can be made anew.
func (s *Store) healing(do func() (GCReport, error)) (GCReport, error) {
	for {
		report, err := do()
		var re *index.DamagedRun
		if errors.Is(err, errRelearned) {
			continue // ends: without a pack that went, nothing is relearned
		}
		if err == nil || !errors.As(err, &re) || !s.heal(re) {
			return report, err
		}
	}
}

func (s *Store) collect(ctx context.Context) (GCReport, error) {
	if s.sh == nil { // else prepareShared does, when it has looked around
		if err := s.stillDamaged(); err != nil {
			return GCReport{}, err
		}
	}
	g := &collection{s: s, ctx: ctx, begun: bootTime(), workers: 1}
	g.wanted = g.alive
	if s.sh != nil {
		if err := g.prepareShared(); err != nil {
			return GCReport{}, err
		}
	}
	if err := s.flushIndex(false); err != nil {
		return GCReport{}, err
	}
	defer s.saveBad()
	if err := g.run(); err != nil {
		return g.report, err
	}
	s.dead.Store(g.report.Dead)
	s.keepReserve()
	if err := s.flushIndex(true); err != nil || s.sh == nil {
		return g.report, err
	}
	return g.report, s.sh.shareRun(ctx)
}

// stillDamaged looks again at records that could not be read.
func (s *Store) stillDamaged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.sh != nil && len(s.damaged) > 0 {
		return s.damaged[0] // refreshImages has looked, and asks again for what was damaged
	}
	var left []*RecordError
	for _, d := range s.damaged {
		id, _ := disk.ParseID(filepath.Base(d.Path), disk.ImgExt)
		rec, err := s.readRecord(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && s.images[rec.Name] == nil:
			s.images[rec.Name] = &imageRec{id: id, rec: rec}
		default:
			left = append(left, d)
		}
	}
	s.damaged = left
	if len(left) > 0 {
		return left[0]
	}
	return nil
}

// snapshotPacks lists every sealed pack.
func (s *Store) snapshotPacks() []*pack.Pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*pack.Pack, 0, len(s.packs))
	for _, p := range s.packs {
		list = append(list, p)
	}
	return list
}

// collection is one run of GC.
type collection struct {
	s       *Store
	ctx     context.Context
	workers int // goroutines that move chunks
	comps   []*codec.Compressor
	wanted  func(*pack.Pack, *pack.Entry) (bool, error) // which chunks of a chosen pack have to be moved
	fit     func(*pack.Pack, []pack.Entry) bool         // whether a chosen pack is what it seems; nil: all are
	packs   []*pack.Pack                                // those whose chunks are all in the runs; younger ones stay
	live    map[*pack.Pack]int64
	sealBuf []byte // where moved chunks are encrypted
	report  GCReport
	spared  map[*pack.Pack]error // packs with the only copy of a needed chunk, and what is wrong with it
	lost    bool                 // a needed chunk is nowhere

	// In a bucket:
	begun  int64 // bootTime
	now    int64 // by the server's clock, Unix ns
	leased []tree.Root
	known  map[*pack.Pack]struct{} // of packs
	marked []*pack.Pack            // what may go later
	// ripened packs are marked and would go now, were they not needed.
	ripened []*pack.Pack

	mu  sync.Mutex
	err error // why a pack of ours was lost
}

func (g *collection) run() error {
	x := g.s.ix
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
	if g.s.sh != nil {
		if err := g.finishMarkers(); err != nil {
			return err
		}
		g.abortUploads()
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
func (g *collection) markAll() error {
	for _, in := range g.s.live() {
		if err := g.markIngest(in); err != nil {
			return err
		}
	}
	for _, rec := range g.records() {
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

// records lists the records of all images, listed or still open.
func (g *collection) records() (recs []*record.Record) {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.images {
		recs = append(recs, im.rec)
	}
	for r := range s.readers {
		recs = append(recs, r.rec)
	}
	return recs
}

func (g *collection) markTree(t tree.Root) error {
	if t.Size == 0 {
		return nil
	}
	return g.s.walkLeaves(t.Span(), t.Level, g.seen, g.markLeaf)
}

// seen marks a node and reports whether GC was there before and follows it already.
func (g *collection) seen(h *chunk.Hash) (bool, error) {
	if err := g.ctx.Err(); err != nil {
		return false, err
	}
	known, found, err := g.s.mark(h, true)
	if err == nil && !found {
		err = g.relearn()
	}
	if err == nil && !found {
		err = g.s.missing(h)
	}
	return known, err
}

// relearn ends this run of GC with errRelearned if a chunk is missing only from the index: the
// pack that has it must not be taken for dead.
func (g *collection) relearn() error {
	again, err := g.s.relearn(g.begun, true)
	if again {
		return errRelearned
	}
	return err
}

func (g *collection) markLeaf(sp tree.Span) error {
	refs, err := g.s.leaf(sp)
	if err != nil {
		return err
	}
	return g.markRefs(refs)
}

// markRefs marks chunks. To tell that one is damaged or missing is Verify's business.
func (g *collection) markRefs(refs []tree.Ref) error {
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		_, found, err := g.s.mark(&refs[i].Hash, false)
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
func (g *collection) spare(h *chunk.Hash) {
	l, ok := g.s.ix.AnyCopy(h)
	if !ok || l.P.Gone.Load() {
		g.lost = true
		return
	}
	if g.spared == nil {
		g.spared = map[*pack.Pack]error{}
	}
	g.spared[l.P] = &ChunkError{Hash: *h, Pack: l.P.Name(), Err: codec.ErrMismatch}
}

// markIngest marks what a running ingest referred to before GC began. A Put or Commit that
// is under way may have looked a chunk up before GC began and not entered it into the list
// yet, so it is waited for; a later one marks for itself.
func (g *collection) markIngest(in *Ingest) error {
	in.quiesce()
	in.mu.Lock()
	spans := in.tree.Spans
	open := in.unlisted()
	over := in.state != ingestRunning
	in.mu.Unlock()
	if over {
		return nil
	}
	for _, sp := range spans {
		if known, err := g.seen(&sp.Hash); err != nil || known {
			if err != nil {
				return err
			}
			continue
		}
		if err := g.markLeaf(sp); err != nil {
			return err
		}
	}
	return g.markRefs(open)
}
