package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
)

// GCReport tells what a GC did.
type GCReport struct {
	Packs   int      // packs removed
	Written int      // packs written with what was alive in removed ones
	Freed   int64    // bytes fewer in packs than before
	Live    int64    // bytes of chunks that are needed
	Dead    int64    // bytes of chunks that are not, and stay in packs where little is dead
	Kept    []string // packs that should have gone but could not be read, and why
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
	if err := s.stillDamaged(); err != nil {
		return GCReport{}, fmt.Errorf("gc: %w", err)
	}
	if err := s.flushIndex(false); err != nil {
		return GCReport{}, fmt.Errorf("gc: %w", err)
	}
	g := &collection{s: s, ctx: ctx}
	err := g.run()
	if ierr := s.flushIndex(true); err == nil {
		err = ierr
	}
	if err != nil {
		return g.report, fmt.Errorf("gc: %w", err)
	}
	return g.report, nil
}

// stillDamaged looks again at records that could not be read.
func (s *Store) stillDamaged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	var left []*RecordError
	for _, d := range s.damaged {
		rec, err := readRecord(d.Path)
		id, _ := parseID(filepath.Base(d.Path), imgExt)
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

// runPacks lists the packs that the runs know. Called with mu held.
func (x *index) runPacks() (list []*pack) {
	seen := map[*pack]bool{}
	for _, r := range x.runs {
		for _, p := range r.packs {
			if !seen[p] && !p.gone.Load() {
				list = append(list, p)
			}
			seen[p] = true
		}
	}
	return list
}

// snapshotPacks lists every sealed pack.
func (s *Store) snapshotPacks() []*pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*pack, 0, len(s.packs))
	for _, p := range s.packs {
		list = append(list, p)
	}
	return list
}

// collection is one run of GC.
type collection struct {
	s      *Store
	ctx    context.Context
	packs  []*pack // those whose chunks are all in the runs; younger ones stay
	live   map[*pack]int64
	report GCReport

	mu  sync.Mutex
	err error // why a pack of ours was lost
}

func (g *collection) run() error {
	x := g.s.ix
	x.mu.Lock()
	x.marks = newMarks(x.runs)
	g.packs = x.runPacks()
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		x.marks = nil
		for _, p := range g.packs {
			p.condemned.Store(false)
		}
		x.mu.Unlock()
	}()
	// From here on new references are marked by those who make them; the old ones follow.
	if err := g.markAll(); err != nil {
		return err
	}
	if err := g.count(); err != nil {
		return err
	}
	chosen := g.choose()
	x.mu.Lock()
	for _, p := range chosen {
		p.condemned.Store(true)
	}
	x.mu.Unlock()
	// Now what is not marked in these packs cannot be referred to any more.
	return g.sweep(chosen)
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
		err := g.markTree(rec.Data)
		for i := range rec.Attach {
			err = errors.Join(err, g.markTree(rec.Attach[i].Data))
		}
		if err != nil {
			return fmt.Errorf("cannot tell what image %q needs (remove it, or checkpoint the same again to heal it): %w", rec.Name, err)
		}
	}
	return nil
}

// records lists the records of all images, listed or still open.
func (g *collection) records() (recs []*record) {
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

func (g *collection) markTree(t root) error {
	if t.Size == 0 {
		return nil
	}
	return g.s.walkLeaves(span{t.Hash, t.Size}, t.Level, g.seen, g.markLeaf)
}

// seen marks a node and reports whether GC was there before and follows it already.
func (g *collection) seen(h *Hash) (bool, error) {
	if err := g.ctx.Err(); err != nil {
		return false, err
	}
	known, found, err := g.s.ix.mark(h)
	if err == nil && !found {
		err = g.s.missing(h)
	}
	return known, err
}

func (g *collection) markLeaf(sp span) error {
	refs, err := g.s.leaf(sp)
	if err != nil {
		return err
	}
	return g.markRefs(refs)
}

// markRefs marks chunks. One that is missing is Verify's business.
func (g *collection) markRefs(refs []chunkRef) error {
	for i := range refs {
		if refs[i].zero {
			continue
		}
		if _, _, err := g.s.ix.mark(&refs[i].hash); err != nil {
			return err
		}
	}
	return nil
}

// markIngest marks what a running ingest referred to before GC began. A Put or Commit that
// is under way may have looked a chunk up before GC began and not entered it into the list
// yet, so it is waited for; a later one marks for itself.
func (g *collection) markIngest(in *Ingest) error {
	in.quiesce()
	in.mu.Lock()
	spans := in.tree.spans
	open := slices.Clone(in.tree.open)
	over := in.state != ingestRunning
	in.mu.Unlock()
	if over {
		return nil
	}
	for _, sp := range spans {
		if known, err := g.seen(&sp.hash); err != nil || known {
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

// count adds up what is alive in every pack.
func (g *collection) count() error {
	g.live = make(map[*pack]int64, len(g.packs))
	for _, r := range g.s.ix.runs {
		it := r.iter()
		for {
			more, err := it.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if g.s.ix.marks.alive[r].has(it.pos) {
				g.live[it.loc.p] += int64(it.loc.stored)
			}
		}
	}
	return g.ctx.Err()
}

// choose picks the packs that go, the deadest first: they make room for the rest.
func (g *collection) choose() []*pack {
	var chosen, small []*pack
	for _, p := range g.packs {
		live := g.live[p]
		g.report.Live += live
		dead := p.size - packHeadLen - packTailLen - live
		switch {
		case p.gone.Load() || p.size == 0:
		case live == 0 || dead*deadShare > p.size:
			chosen = append(chosen, p)
		case p.size < min(smallPack, g.s.o.PackSize/2):
			small = append(small, p)
			g.report.Dead += dead
		default:
			g.report.Dead += dead
		}
	}
	if len(small) >= smallPacks {
		chosen = append(chosen, small...)
	}
	slices.SortFunc(chosen, func(a, b *pack) int { return cmp.Compare(g.live[a], g.live[b]) })
	return chosen
}

// sweep writes what is alive in the chosen packs elsewhere, and removes them.
func (g *collection) sweep(chosen []*pack) error {
	w := newPackWriter(g.s.files, g.s.o.PackSize, g)
	var moved []*pack
	err := func() error {
		for _, p := range chosen {
			n, err := g.move(w, p)
			switch {
			case errors.Is(err, errGone):
			case isKept(err):
				g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v", p.name(), err))
			case err != nil:
				return err
			case n == 0:
				if err := g.drop(p); err != nil {
					return err
				}
			default:
				moved = append(moved, p)
			}
		}
		return nil
	}()
	w.flush()
	g.mu.Lock()
	err = errors.Join(err, g.err)
	g.mu.Unlock()
	if err != nil {
		return err
	}
	for _, p := range moved {
		if err := g.drop(p); err != nil {
			return err
		}
	}
	return syncDir(filepath.Join(g.s.dir, packsName))
}

// isKept reports whether a pack stays because it is damaged.
func isKept(err error) bool { return err != nil && errors.Is(err, ErrDamaged) }

// move copies what is alive in a pack and returns the number of chunks.
func (g *collection) move(w *packWriter, p *pack) (n int, err error) {
	info, err := g.s.readFooter(p)
	if err != nil {
		if isDamage(err) && !errors.Is(err, errGone) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return 0, err
	}
	for i := range info.entries {
		e := &info.entries[i]
		alive, err := g.alive(p, e)
		if err == nil && alive {
			n++
			err = g.copyChunk(w, p, e)
		}
		if err == nil {
			err = g.ctx.Err()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// alive reports whether the copy of a chunk in p is the one that is needed.
func (g *collection) alive(p *pack, e *entry) (bool, error) {
	x := g.s.ix
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, r, pos, ok, err := x.findRun(&e.hash, func(l loc, _ *run, _ int) bool { return l.p == p && l.off == e.off })
	return ok && x.marks.alive[r].has(pos), err
}

// copyChunk writes a chunk of p into a pack of ours, as it is stored, if it is whole.
func (g *collection) copyChunk(w *packWriter, p *pack, e *entry) error {
	s := g.s
	stored, raw := s.bufs.get(int(e.stored)), s.bufs.get(int(e.raw))
	defer stored.release()
	defer raw.release()
	if err := s.files.readAt(p, stored.data, int64(e.off)); err != nil {
		return err
	}
	if err := s.dec.decode(raw.data, stored.data, e.codec, e.hash); err != nil {
		s.ix.condemnCopy(loc{p: p, off: e.off})
		return &ChunkError{Hash: e.hash, Pack: p.name(), Err: err}
	}
	_, err := w.append(entry{hash: e.hash, raw: e.raw, codec: e.codec}, stored.data)
	return err
}

// drop removes a pack of which nothing is needed any more.
func (g *collection) drop(p *pack) error {
	s := g.s
	s.mu.Lock()
	delete(s.packs, p.id)
	s.mu.Unlock()
	if err := s.files.drop(p); err != nil {
		return err
	}
	g.report.Packs++
	g.report.Freed += p.size
	return nil
}

// What the packs that GC writes tell it.

func (g *collection) opened(*pack) {}

func (g *collection) added(p *pack, e *entry) { g.s.ix.added(p, e) }

func (g *collection) sealed(p *pack) {
	g.s.packSealed(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Written++
	g.report.Freed -= p.size
}

// failed: the copies are lost; the originals are still where they were.
func (g *collection) failed(p *pack, err error) {
	g.s.ix.lose(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = errors.Join(g.err, err)
}
