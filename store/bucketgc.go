package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// In a bucket GC takes two runs. The first copies what is alive, then marks the packs it
// wants to remove; the second, a grace time later, removes those that nobody has come to
// need. doc.go, "Bucket", says why that is safe.

// youngPacks is, in grace times, how old a pack must be to be looked at: younger ones may
// belong to an image that is still being written.
const youngPacks = 4

// abandoned is how old an unfinished upload must be to be removed.
const abandoned = 24 * time.Hour

// gcEvery is, in grace times, how often the machines that share a bucket collect on their own.
const gcEvery = 4

// lastGCKey is an object whose date tells when a GC began.
const lastGCKey = markersName + "/last"

// GCWait tells how long a GC that nobody asked for should wait: in a bucket it is enough if one
// of the machines collects now and then. In a folder it is always 0.
func (s *Store) GCWait(ctx context.Context) (time.Duration, error) {
	if s.sh == nil {
		return 0, nil
	}
	last, err := s.sh.b.Stat(ctx, lastGCKey)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	now, err := s.sh.serverTime(ctx)
	if err != nil {
		return 0, err
	}
	wait := gcEvery*s.sh.grace - time.Duration(now-last.Modified.UnixNano())
	if wait <= 0 {
		return 0, nil
	}
	return wait + rand.N(s.sh.grace), nil // not all machines at once
}

// prepareShared brings everything up to date before a GC marks what is alive.
func (g *collection) prepareShared() error {
	sh := g.s.sh
	now, err := sh.serverTime(g.ctx)
	if err != nil {
		return err
	}
	g.now = now
	if err := sh.b.PutBytes(g.ctx, lastGCKey, []byte{'\n'}, bucket.Always); err != nil {
		return err
	}
	if err := sh.refresh(g.ctx, true); err != nil {
		return err
	}
	if err := sh.refreshImages(g.ctx, bootTime()); err != nil {
		return err
	}
	if g.leased, err = sh.leases(g.ctx, now); err != nil {
		return err
	}
	return g.s.stillDamaged()
}

// serverTime is what the bucket's clock says, in Unix ns: machines' clocks differ, and
// markers and leases are dated by the server.
func (sh *shared) serverTime(ctx context.Context) (int64, error) {
	key := leasesName + "/" + disk.NewID().String() + ".now"
	if err := sh.b.PutBytes(ctx, key, []byte{'\n'}, bucket.Always); err != nil {
		return 0, err
	}
	o, err := sh.b.Stat(ctx, key)
	return o.Modified.UnixNano(), errors.Join(err, sh.b.Remove(ctx, key))
}

// ripe reports whether a marker is so old that everyone who writes has seen it. Servers
// date objects to the second.
func (g *collection) ripe(m *marker) bool {
	return g.now-m.mod.UnixNano() > int64(g.s.sh.grace+time.Second)
}

// finishMarkers removes the packs of ripe markers that are still not needed. A pack that is
// needed after all stays marked, and choose has it copied: were its marker removed, a GC
// elsewhere that does not know yet might remove the pack from under who then refers to it.
func (g *collection) finishMarkers() error {
	sh := g.s.sh
	sh.mu.Lock()
	ripe := map[disk.ID]*marker{}
	for id, m := range sh.markers {
		if g.ripe(m) {
			ripe[id] = m
		} else {
			g.report.Pending += len(m.packs)
		}
	}
	sh.mu.Unlock()
	for id, m := range ripe {
		left, err := g.removeMarked(m)
		if err != nil {
			return err
		}
		if left > 0 {
			g.report.Pending += left
			continue
		}
		if err := sh.b.Remove(g.ctx, markerKey(id)); err != nil {
			return err
		}
		sh.mu.Lock()
		delete(sh.markers, id)
		sh.applyMarkers()
		sh.mu.Unlock()
	}
	return nil
}

// removeMarked removes the packs of a marker and reports how many are still there: something
// in them is alive, or everything takes so long that what is known is old at once. A later run
// tries again.
func (g *collection) removeMarked(m *marker) (left int, err error) {
	for i, id := range m.packs {
		if since(g.s.sh.seen.Load()) > g.s.sh.grace/4 {
			if err := g.catchUp(); err != nil {
				return 0, err
			}
		}
		if g.s.sh.inTouch() != nil {
			return left + len(m.packs) - i, nil
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
func (g *collection) catchUp() error {
	sh := g.s.sh
	err := sh.refresh(g.ctx, false)
	if err == nil {
		err = sh.refreshImages(g.ctx, bootTime())
	}
	if err == nil {
		g.leased, err = sh.leases(g.ctx, g.now)
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
func (g *collection) removeDoomed(id disk.ID) (gone bool, err error) {
	sh := g.s.sh
	g.s.mu.Lock()
	p := g.s.packs[id]
	g.s.mu.Unlock()
	if p == nil {
		return true, nil // another machine was here
	}
	if _, counted := g.known[p]; !counted || g.live[p] > 0 || g.s.ix.IsYoung(p) {
		g.ripened = append(g.ripened, p)
		return false, nil
	}
	if p.Gone.Load() {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, sh.grace/4)
	defer cancel()
	if err := sh.b.Remove(ctx, packKey(id)); err != nil {
		return false, err
	}
	g.s.packGone(p)
	g.report.Packs++
	g.report.Freed += p.Size
	return true, nil
}

// young reports whether a pack is too young to be looked at.
func (g *collection) young(p *pack.Pack) bool {
	young := g.s.o.young
	if young == 0 {
		young = youngPacks * g.s.sh.grace
	}
	return g.now-p.ID.Time().UnixNano() < int64(young)
}

// markPacks is the end of the first run: what was not needed or has been copied may go.
func (g *collection) markPacks(packs []*pack.Pack) error {
	if len(packs) == 0 {
		return nil
	}
	g.report.Pending += len(packs)
	return g.s.sh.mark(g.ctx, packs)
}

// abortUploads removes the parts of uploads that machines did not live to finish. Not every
// server can list them, and nothing depends on it.
func (g *collection) abortUploads() {
	sh := g.s.sh
	ctx, cancel := context.WithTimeout(g.ctx, sh.b.Attempt)
	defer cancel()
	for u := range sh.b.Uploads(ctx, packsName+"/") {
		if u.Err != nil {
			g.s.o.Log(fmt.Sprintf("store %s: unfinished uploads cannot be listed: %v", sh.b.URL, u.Err))
			return
		}
		if g.now-u.Initiated.UnixNano() < int64(abandoned) {
			continue
		}
		if err := sh.b.AbortUpload(ctx, u.Key, u.UploadID); err != nil {
			g.s.o.Log(fmt.Sprintf("store %s: removing an unfinished upload of %s: %v", sh.b.URL, u.Key, err))
		}
	}
}
