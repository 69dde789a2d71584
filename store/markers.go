package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// marker says that a GC wants to remove packs. It is an object of lines, an ID each, and the
// BLAKE3 of all of them: a wrong digit would name another pack.
type marker struct {
	packs []disk.ID
	mod   time.Time // by the server's clock
}

// markerMagic is the first line of a marker.
const markerMagic = "ckptfs gc 1"

// maxMarker bounds a marker, in bytes, that is in packs: half a million.
const maxMarker = 16 << 20

func encodeMarker(ids []disk.ID) []byte {
	b := append([]byte(markerMagic), '\n')
	for _, id := range ids {
		b = append(hex.AppendEncode(b, id[:]), '\n')
	}
	return fmt.Appendf(b, "%s\n", chunk.Sum(b))
}

func decodeMarker(b []byte) ([]disk.ID, error) {
	lines := bytes.Split(bytes.TrimSuffix(b, []byte{'\n'}), []byte{'\n'})
	sum := lines[len(lines)-1]
	if lines = lines[:len(lines)-1]; len(lines) == 0 || string(lines[0]) != markerMagic {
		return nil, errors.New("not a GC marker")
	}
	if chunk.Sum(b[:len(b)-len(sum)-1]).String() != string(sum) {
		return nil, errors.New("a GC marker is damaged")
	}
	var ids []disk.ID
	for _, l := range lines[1:] {
		id, ok := disk.ParseID(string(l), "")
		if !ok {
			return nil, fmt.Errorf("%q in a GC marker is no pack", l)
		}
		ids = append(ids, id)
	}
	return ids, nil
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
		err := sh.b.GetParsed(ctx, markerKey(id), maxMarker, func(b []byte) (err error) {
			packs, err = decodeMarker(b)
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
	if err := sh.b.PutBytes(ctx, markerKey(id), encodeMarker(ids), bucket.Always); err != nil {
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
