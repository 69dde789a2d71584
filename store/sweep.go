package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// sweep writes what is alive in the chosen packs elsewhere, and removes them.
func (g *collection) sweep(chosen []*pack) error {
	w := newPackWriters(g.s, g)
	var moved []*pack
	err := func() error {
		for _, p := range chosen {
			var n int
			var err error
			if g.live[p] > 0 || g.s.sh == nil {
				n, err = g.move(w, p)
			}
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

// strays picks the packs of which nobody knows any more what is in them: garbage, if all
// that is needed is elsewhere. Not in a bucket, where others may know.
func (g *collection) strays() (chosen []*pack) {
	if g.s.sh != nil {
		return nil
	}
	for _, p := range g.s.ix.unreadable() {
		if g.lost {
			g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v; what an image lacks may be in it", p.name(), errCutPack))
			continue
		}
		chosen = append(chosen, p)
	}
	return chosen
}

// isKept reports whether a pack stays because it is damaged.
func isKept(err error) bool { return err != nil && errors.Is(err, ErrDamaged) }

// move copies what is alive in a pack and returns the number of chunks.
func (g *collection) move(w *packWriters, p *pack) (n int, err error) {
	info, err := g.s.readFooter(p)
	if errors.Is(err, errCutPack) {
		info, err = &packInfo{entries: g.s.ix.entriesOf(p)}, nil
	}
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
func (g *collection) copyChunk(w *packWriters, p *pack, e *entry) error {
	s := g.s
	stored, raw := s.bufs.get(int(e.stored)), s.bufs.get(int(e.raw))
	defer stored.release()
	defer raw.release()
	plain, err := g.checkedChunk(s.files.readAt, p, e, stored.data, raw.data)
	if err != nil && s.sh != nil && isDamage(err) && !errors.Is(err, errGone) {
		s.files.cache.forget(p) // it may have come damaged
		plain, err = g.checkedChunk(s.files.cache.fetch, p, e, stored.data, raw.data)
	}
	if err != nil && (!isDamage(err) || errors.Is(err, errGone)) {
		return err
	}
	if err != nil {
		s.ix.condemnCopy(loc{p: p, off: e.off})
		return &ChunkError{Hash: e.hash, Pack: p.name(), Err: err}
	}
	_, g.sealBuf, err = w.of(p.id.nodes()).append(entry{hash: e.hash, raw: e.raw, codec: e.codec}, plain, g.sealBuf)
	return err
}

// checkedChunk reads a chunk as it is stored, decrypted, and checks it.
func (g *collection) checkedChunk(readAt func(*pack, []byte, int64) error, p *pack, e *entry, stored, raw []byte) (plain []byte, err error) {
	if err := readAt(p, stored, int64(e.off)); err != nil {
		return nil, err
	}
	plain, err = p.unseal(g.s.sec, e, stored)
	if err == nil {
		err = g.s.dec.decode(raw, plain, e.codec, e.hash)
	}
	return plain, err
}

// drop removes a pack of which nothing is needed any more.
func (g *collection) drop(p *pack) error {
	s := g.s
	if s.sh != nil && !slices.Contains(g.ripened, p) {
		g.marked = append(g.marked, p)
	}
	if s.sh != nil {
		return nil
	}
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

func (g *collection) opened(p *pack) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	g.s.writing[p.id] = struct{}{}
}

func (g *collection) added(p *pack, e entry) { g.s.ix.added(p, &e) }

func (g *collection) sealed(p *pack) {
	g.s.packSealed(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Written++
	g.report.Freed -= p.size
}

// failed: the copies are lost; the originals are still where they were.
func (g *collection) failed(p *pack, err error) {
	g.s.packLost(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = errors.Join(g.err, err)
}
