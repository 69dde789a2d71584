package fleet

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

// Marker says that a GC wants to remove packs. It is an object of lines, an ID each, and the
// BLAKE3 of all of them: a wrong digit would name another pack.
type Marker struct {
	Packs []disk.ID
	Mod   time.Time // by the server's clock
}

func MarkerKey(id disk.ID) string { return Markers + "/" + id.String() + markerExt }

// readMarkers learns which packs are about to be removed, and reports whether a marker that
// was there is not any more: its packs are gone, or stay. Called with mu held.
func (f *Fleet) readMarkers(ctx context.Context) (vanished bool, err error) {
	found := map[disk.ID]time.Time{}
	err = f.Bucket.List(ctx, Markers+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, markerExt); ok {
			found[id] = o.Modified
		}
	})
	if err != nil {
		return false, err
	}
	for id, mod := range found {
		if f.markers[id] != nil {
			continue
		}
		var packs []disk.ID
		err := f.Bucket.GetParsed(ctx, MarkerKey(id), record.MaxMarker, func(b []byte) (err error) {
			packs, err = record.DecodeMarker(b)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			vanished = true
			continue
		}
		if err != nil {
			return false, fmt.Errorf("%s/%s: %w", f.Bucket.URL, MarkerKey(id), err)
		}
		f.markers[id] = &Marker{packs, mod}
	}
	for id := range f.markers {
		if _, ok := found[id]; ok {
			continue
		}
		_, err := f.Bucket.Stat(ctx, MarkerKey(id)) // the listing may be old
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err != nil {
			delete(f.markers, id)
			vanished = true
		}
	}
	f.applyMarkers()
	return vanished, nil
}

// applyMarkers tells every pack whether it is about to go. Called with mu held.
func (f *Fleet) applyMarkers() {
	doomed := map[disk.ID]bool{}
	for _, m := range f.markers {
		for _, id := range m.Packs {
			doomed[id] = true
		}
	}
	f.local.Doom(doomed)
}

// Mark writes a marker. From now on nobody may refer to the packs; after the grace time a
// GC removes those that are still not needed.
func (f *Fleet) Mark(ctx context.Context, packs []*pack.Pack) error {
	ids := make([]disk.ID, len(packs))
	for i, p := range packs {
		ids[i] = p.ID
		p.Doomed.Store(true)
	}
	id := disk.NewID()
	if err := f.Bucket.PutBytes(ctx, MarkerKey(id), record.EncodeMarker(ids), bucket.Always); err != nil {
		return err
	}
	o, err := f.Bucket.Stat(ctx, MarkerKey(id))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.markers[id] = &Marker{ids, o.Modified}
	f.applyMarkers()
	return nil
}
