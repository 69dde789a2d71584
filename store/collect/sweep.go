package collect

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/store/damage"

	"github.com/ckptfs/ckptfs/store/pack"
)

// sweep writes what is alive in the chosen packs elsewhere, and removes them.
func (g *Collection) sweep(chosen []*pack.Pack) error {
	w := g.env.Writers(g)
	var moved []*pack.Pack
	settled := 0
	err := func() error {
		for _, p := range chosen {
			var n int
			var err error
			from := g.report.SettledFrom
			if g.live[p] > 0 || g.env.Fleet == nil {
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
	return errors.Join(err, g.env.SyncPacks())
}

// strays picks the packs of which nobody knows any more what is in them: garbage, if all
// that is needed is elsewhere. Not in a bucket, where others may know.
func (g *Collection) strays() (chosen []*pack.Pack) {
	if g.env.Fleet != nil {
		return nil
	}
	for _, p := range g.env.Index.Unreadable() {
		if g.lost {
			g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v; what an image lacks may be in it", p.Name(), pack.ErrCut))
			continue
		}
		chosen = append(chosen, p)
	}
	return chosen
}

// isKept reports whether a pack stays because it is damaged.
func isKept(err error) bool { return err != nil && errors.Is(err, damage.Err) }

// drop removes a pack of which nothing is needed any more.
func (g *Collection) drop(p *pack.Pack) error {
	if g.env.Fleet != nil && !slices.Contains(g.ripened, p) {
		g.marked = append(g.marked, p)
	}
	if g.env.Fleet != nil {
		return nil
	}
	if err := g.env.Remove(p); err != nil {
		return err
	}
	g.report.Packs++
	g.report.Freed += p.Size
	return nil
}

// What the packs that GC writes tell it.

func (g *Collection) Opened(p *pack.Pack) {
	g.env.Opened(p)
}

func (g *Collection) Added(p *pack.Pack, es []pack.Entry) { g.env.Index.Added(p, es) }

func (g *Collection) Sealed(p *pack.Pack) {
	g.env.Sealed(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Written++
	g.report.Freed -= p.Size
}

// failed: the copies are lost; the originals are still where they were.
func (g *Collection) Failed(p *pack.Pack, err error) {
	g.env.Lost(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = errors.Join(g.err, err)
}
