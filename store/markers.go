package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
)

// marker says that a GC wants to remove packs. It is an object of lines, an ID each, and the
// BLAKE3 of all of them: a wrong digit would name another pack.
type marker struct {
	packs []disk.ID
	mod   time.Time // by the server's clock
}

func markerKey(id disk.ID) string { return markersName + "/" + id.String() + markerExt }

// readMarkers learns which packs are about to be removed, and reports whether a marker that
// was there is not any more: its packs are gone, or stay. Called with mu held.
func (sh *shared) readMarkers(ctx context.Context) (vanished bool, err error) {
	found := map[disk.ID]time.Time{}
	err = sh.b.List(ctx, markersName+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, markerExt); ok {
			found[id] = o.Modified
		}
	})
	if err != nil {
		return false, err
	}
	for id, mod := range found {
		if sh.markers[id] != nil {
			continue
		}
		var packs []disk.ID
		err := sh.b.GetParsed(ctx, markerKey(id), record.MaxMarker, func(b []byte) (err error) {
			packs, err = record.DecodeMarker(b)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			vanished = true
			continue
		}
		if err != nil {
			return false, fmt.Errorf("%s/%s: %w", sh.b.URL, markerKey(id), err)
		}
		sh.markers[id] = &marker{packs, mod}
	}
	for id := range sh.markers {
		if _, ok := found[id]; ok {
			continue
		}
		_, err := sh.b.Stat(ctx, markerKey(id)) // the listing may be old
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err != nil {
			delete(sh.markers, id)
			vanished = true
		}
	}
	sh.applyMarkers()
	return vanished, nil
}

// applyMarkers tells every pack whether it is about to go. Called with mu held.
func (sh *shared) applyMarkers() {
	doomed := map[disk.ID]bool{}
	for _, m := range sh.markers {
		for _, id := range m.packs {
			doomed[id] = true
		}
	}
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	sh.s.doomed = doomed
	for id, p := range sh.s.packs {
		p.Doomed.Store(doomed[id])
	}
}

// mark writes a marker. From now on nobody may refer to the packs; after the grace time a
// GC removes those that are still not needed.
func (sh *shared) mark(ctx context.Context, packs []*pack.Pack) error {
	ids := make([]disk.ID, len(packs))
	for i, p := range packs {
		ids[i] = p.ID
		p.Doomed.Store(true)
	}
	id := disk.NewID()
	if err := sh.b.PutBytes(ctx, markerKey(id), record.EncodeMarker(ids), bucket.Always); err != nil {
		return err
	}
	o, err := sh.b.Stat(ctx, markerKey(id))
	if err != nil {
		return err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.markers[id] = &marker{ids, o.Modified}
	sh.applyMarkers()
	return nil
}
