package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// sweep writes what is alive in the chosen packs elsewhere, and removes them.
func (g *collection) sweep(chosen []*pack.Pack) error {
	w := g.s.packWriters(g, 0)
	var moved []*pack.Pack
	settled := 0
	err := func() error {
		for _, p := range chosen {
			var n int
			var err error
			from := g.report.SettledFrom
			if g.live[p] > 0 || g.s.sh == nil {
				n, err = g.move(w, p)
			}
			switch {
			case errors.Is(err, pack.ErrGone):
			case errors.Is(err, errUnfit):
				p.Unfit.Store(true)
			case isKept(err):
				p.Unfit.Store(true)
				g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v", p.Name(), err))
			case err != nil:
				return err
			case n == 0:
				if err := g.drop(p); err != nil {
					return err
				}
			default:
				moved = append(moved, p)
				if g.report.SettledFrom > from {
					settled++
				}
			}
		}
		return nil
	}()
	w.Flush()
	g.mu.Lock()
	lost := g.err
	g.mu.Unlock()
	if lost != nil {
		return errors.Join(err, lost)
	}
	// What was moved as a whole can go, also if somebody stopped us then.
	g.report.Settled += settled
	for _, p := range moved {
		if err := g.drop(p); err != nil {
			return err
		}
	}
	return errors.Join(err, disk.SyncDir(filepath.Join(g.s.dir, packsName)))
}

// strays picks the packs of which nobody knows any more what is in them: garbage, if all
// that is needed is elsewhere. Not in a bucket, where others may know.
func (g *collection) strays() (chosen []*pack.Pack) {
	if g.s.sh != nil {
		return nil
	}
	for _, p := range g.s.ix.Unreadable() {
		if g.lost {
			g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v; what an image lacks may be in it", p.Name(), pack.ErrCut))
			continue
		}
		chosen = append(chosen, p)
	}
	return chosen
}

// isKept reports whether a pack stays because it is damaged.
func isKept(err error) bool { return err != nil && errors.Is(err, ErrDamaged) }

// drop removes a pack of which nothing is needed any more.
func (g *collection) drop(p *pack.Pack) error {
	s := g.s
	if s.sh != nil && !slices.Contains(g.ripened, p) {
		g.marked = append(g.marked, p)
	}
	if s.sh != nil {
		return nil
	}
	s.mu.Lock()
	delete(s.packs, p.ID)
	s.mu.Unlock()
	if err := s.files.Drop(p); err != nil {
		return err
	}
	g.report.Packs++
	g.report.Freed += p.Size
	return nil
}

// What the packs that GC writes tell it.

func (g *collection) Opened(p *pack.Pack) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	g.s.writing[p.ID] = struct{}{}
}

func (g *collection) Added(p *pack.Pack, es []pack.Entry) { g.s.ix.Added(p, es) }

func (g *collection) Sealed(p *pack.Pack) {
	g.s.packSealed(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Written++
	g.report.Freed -= p.Size
}

// failed: the copies are lost; the originals are still where they were.
func (g *collection) Failed(p *pack.Pack, err error) {
	g.s.packLost(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = errors.Join(g.err, err)
}
