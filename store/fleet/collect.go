package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
)

// ServerTime is what the bucket's clock says, in Unix ns: machines' clocks differ, and
// markers and leases are dated by the server.
func (f *Fleet) ServerTime(ctx context.Context) (int64, error) {
	key := Leases + "/" + disk.NewID().String() + ".now"
	if err := f.Bucket.PutBytes(ctx, key, []byte{'\n'}, bucket.Always); err != nil {
		return 0, err
	}
	o, err := f.Bucket.Stat(ctx, key)
	return o.Modified.UnixNano(), errors.Join(err, f.Bucket.Remove(ctx, key))
}

// LastGC is the key of an object whose date tells when a GC began.
const LastGC = Markers + "/last"

// abandoned is how old an unfinished upload must be to be removed.
const abandoned = 24 * time.Hour

// GCBegins notes that a GC begins, and returns the server's time.
func (f *Fleet) GCBegins(ctx context.Context) (now int64, err error) {
	if now, err = f.ServerTime(ctx); err != nil {
		return 0, err
	}
	return now, f.Bucket.PutBytes(ctx, LastGC, []byte{'\n'}, bucket.Always)
}

// SinceGC tells how long ago any machine began a GC; ok is false if none did.
func (f *Fleet) SinceGC(ctx context.Context) (d time.Duration, ok bool, err error) {
	last, err := f.Bucket.Stat(ctx, LastGC)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	now, err := f.ServerTime(ctx)
	return time.Duration(now - last.Modified.UnixNano()), true, err
}

// Ripe lists the markers that are so old at a time of the server's that everyone who writes has
// seen them, and how many packs the others name. Servers date objects to the second.
func (f *Fleet) Ripe(now int64) (ripe map[disk.ID]*Marker, pending int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ripe = map[disk.ID]*Marker{}
	for id, m := range f.markers {
		if now-m.Mod.UnixNano() > int64(f.Grace+time.Second) {
			ripe[id] = m
		} else {
			pending += len(m.Packs)
		}
	}
	return ripe, pending
}

// Unmark removes a marker.
func (f *Fleet) Unmark(ctx context.Context, id disk.ID) error {
	if err := f.Bucket.Remove(ctx, MarkerKey(id)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.markers, id)
	f.applyMarkers()
	return nil
}

// RemovePack removes a pack, or fails within a quarter of the grace time: what is known of who
// needs it would be too old.
func (f *Fleet) RemovePack(ctx context.Context, id disk.ID) error {
	ctx, cancel := context.WithTimeout(ctx, f.Grace/4)
	defer cancel()
	return f.Bucket.Remove(ctx, PackKey(id))
}

// AbortUploads removes the parts of uploads that machines did not live to finish. Not every
// server can list them, and nothing depends on it.
func (f *Fleet) AbortUploads(ctx context.Context, now int64) {
	ctx, cancel := context.WithTimeout(ctx, f.Bucket.Attempt)
	defer cancel()
	for u := range f.Bucket.Uploads(ctx, layout.Packs+"/") {
		if u.Err != nil {
			f.c.Log(fmt.Sprintf("store %s: unfinished uploads cannot be listed: %v", f.Bucket.URL, u.Err))
			return
		}
		if now-u.Initiated.UnixNano() < int64(abandoned) {
			continue
		}
		if err := f.Bucket.AbortUpload(ctx, u.Key, u.UploadID); err != nil {
			f.c.Log(fmt.Sprintf("store %s: removing an unfinished upload of %s: %v", f.Bucket.URL, u.Key, err))
		}
	}
}
