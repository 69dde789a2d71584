package collect

import (
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
)

// In a bucket GC takes two runs. The first copies what is alive, then marks the packs it
// wants to remove; the second, a grace time later, removes those that nobody has come to
// need. doc.go, "Bucket", says why that is safe.

// YoungPacks is, in grace times, how old a pack must be to be looked at: younger ones may
// belong to an image that is still being written.
const YoungPacks = 4

// Prepare, in a bucket, brings everything up to date before a GC marks what is alive.
func (g *Collection) Prepare() error {
	sh := g.env.Fleet
	now, err := sh.GCBegins(g.ctx)
	if err != nil {
		return err
	}
	g.now = now
	if err := sh.Refresh(g.ctx, true); err != nil {
		return err
	}
	if err := sh.RefreshImages(g.ctx, fleet.Now()); err != nil {
		return err
	}
	if g.leased, err = sh.Leases(g.ctx, now); err != nil {
		return err
	}
	return g.env.StillDamaged()
}

// finishMarkers removes the packs of ripe markers that are still not needed. A pack that is
// needed after all stays marked, and choose has it copied: were its marker removed, a GC
// elsewhere that does not know yet might remove the pack from under who then refers to it.
func (g *Collection) finishMarkers() error {
	sh := g.env.Fleet
	ripe, pending := sh.Ripe(g.now)
	g.report.Pending += pending
	for id, m := range ripe {
		left, err := g.removeMarked(m)
		if err != nil {
			return err
		}
		if left > 0 {
			g.report.Pending += left
			continue
		}
		if err := sh.Unmark(g.ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// removeMarked removes the packs of a marker and reports how many are still there: something
// in them is alive, or everything takes so long that what is known is old at once. A later run
// tries again.
func (g *Collection) removeMarked(m *fleet.Marker) (left int, err error) {
	for i, id := range m.Packs {
		if fleet.Since(g.env.Fleet.Seen.Load()) > g.env.Fleet.Grace/4 {
			if err := g.catchUp(); err != nil {
				return 0, err
			}
		}
		if g.env.Fleet.InTouch() != nil {
			return left + len(m.Packs) - i, nil
		}
		gone, err := g.removeDoomed(id)
		if err != nil {
			return 0, err
		}
		if !gone {
			left++
		}
	}
	return left, nil
}

// catchUp marks what has come to be needed since the marking began, which is little.
func (g *Collection) catchUp() error {
	sh := g.env.Fleet
	err := sh.Refresh(g.ctx, false)
	if err == nil {
		err = sh.RefreshImages(g.ctx, fleet.Now())
	}
	if err == nil {
		g.leased, err = sh.Leases(g.ctx, g.now)
	}
	if err == nil {
		err = g.markAll()
	}
	if err == nil {
		err = g.count()
	}
	return err
}

// removeDoomed removes a marked pack, unless something in it is alive, and reports whether
// it is gone.
func (g *Collection) removeDoomed(id disk.ID) (gone bool, err error) {
	sh := g.env.Fleet
	p := g.env.Pack(id)
	if p == nil {
		return true, nil // another machine was here
	}
	if _, counted := g.known[p]; !counted || g.live[p] > 0 || g.env.Index.IsYoung(p) {
		g.ripened = append(g.ripened, p)
		return false, nil
	}
	if p.Gone.Load() {
		return true, nil
	}
	if err := sh.RemovePack(g.ctx, id); err != nil {
		return false, err
	}
	g.env.Gone(p)
	g.report.Packs++
	g.report.Freed += p.Size
	return true, nil
}

// young reports whether a pack is too young to be looked at.
func (g *Collection) young(p *pack.Pack) bool {
	young := g.env.Young
	if young == 0 {
		young = YoungPacks * g.env.Fleet.Grace
	}
	return g.now-p.ID.Time().UnixNano() < int64(young)
}

// markPacks is the end of the first run: what was not needed or has been copied may go.
func (g *Collection) markPacks(packs []*pack.Pack) error {
	if len(packs) == 0 {
		return nil
	}
	g.report.Pending += len(packs)
	return g.env.Fleet.Mark(g.ctx, packs)
}
