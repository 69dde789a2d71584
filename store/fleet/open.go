package fleet

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/minio/minio-go/v7"
)

// Open connects to a bucket, makes it a store if it is empty, and prepares the cache folder
// for it, whose lock it returns. Nothing is asked by itself until Start.
func Open(c Config, local Local) (f *Fleet, lock *os.File, err error) {
	b, err := bucket.Open(c.Location, c.Patience, c.Attempt)
	if err != nil {
		return nil, nil, err
	}
	f = &Fleet{Bucket: b, c: c, local: local, Grace: c.Grace, lease: disk.NewID(), markers: map[disk.ID]*Marker{},
		removed: map[disk.ID]bool{}, undo: map[disk.ID]bool{}, records: map[disk.ID]Fetched{}}
	f.Holes.Store(true) // what the index had when it was written, nobody knows
	f.Ctx, f.cancel = context.WithCancelCause(context.Background())
	if lock, err = f.lockCache(); err != nil {
		return nil, nil, err
	}
	if err := f.agree(); err != nil {
		f.cancel(err)
		return nil, nil, errors.Join(err, lock.Close())
	}
	return f, lock, nil
}

// lockCache takes the folder for what is kept here of the bucket.
func (f *Fleet) lockCache() (lock *os.File, err error) {
	dir := f.c.Cache
	if dir == "" {
		if dir, err = os.UserCacheDir(); err != nil {
			return nil, fmt.Errorf("a store in a bucket needs a folder for its cache: %w", err)
		}
		dir = filepath.Join(dir, "ckptfs")
	}
	sum := chunk.Sum([]byte(f.Bucket.Where()))
	f.Dir = filepath.Join(dir, hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return nil, err
	}
	return layout.Lock(f.Dir)
}

// agree reads what the bucket says of itself.
func (f *Fleet) agree() error {
	text, err := f.version()
	if err != nil {
		return err
	}
	v, err := layout.Parse(f.c.Location, f.c.Location+"/"+layout.VersionName, text, f.c.Sec)
	if err != nil {
		return err
	}
	if v.Grace > 0 {
		f.Grace = v.Grace
	}
	return f.claimCache(text)
}

// version returns the bucket's version object, and writes it if there is none.
func (f *Fleet) version() (string, error) {
	for range versionTries {
		b, err := f.getTwice(layout.VersionName)
		var re minio.ErrorResponse
		if errors.As(err, &re) && re.Code == minio.NoSuchBucket {
			return "", fmt.Errorf("there is no bucket %q; create it first: %w", f.Bucket.Name, err)
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return string(b), err
		}
		if err := f.mayInit(); err != nil {
			return "", err
		}
		err = f.Bucket.PutBytes(f.Ctx, layout.VersionName, layout.Text(f.c.Sec, f.Grace), bucket.IfAbsent)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s/%s was written %d times and still is not there; the server contradicts itself", f.Bucket.URL, layout.VersionName, versionTries)
}

// versionTries bounds how often a version object that was written is looked for in vain.
const versionTries = 5

// getTwice returns a small object that has no checksum of its own, when it came equal twice.
func (f *Fleet) getTwice(key string) (data []byte, err error) {
	err = f.Bucket.GetParsed(f.Ctx, key, secret.MaxKeyFile, func(b []byte) error {
		if string(b) != string(data) || data == nil {
			data = b
			return fmt.Errorf("%s/%s never comes the same: the network changes it", f.Bucket.URL, key)
		}
		return nil
	})
	return data, err
}

// mayInit reports whether a prefix without a version may become a store.
func (f *Fleet) mayInit() error {
	ctx, cancel := context.WithCancel(f.Ctx)
	defer cancel()
	found := ""
	err := f.Bucket.List(ctx, "", "", func(o bucket.Object) {
		if found == "" {
			found = o.Key
			cancel() // one is enough
		}
	})
	if found != "" && found != layout.VersionName {
		return fmt.Errorf("%w: %s is not empty (%s); choose another prefix", layout.ErrNotStore, f.Bucket.URL, found)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// claimCache empties the cache folder if it is that of another store.
func (f *Fleet) claimCache(text string) error {
	path := filepath.Join(f.Dir, layout.VersionName)
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, n := range []string{layout.Packs, layout.Index} {
		if err := os.RemoveAll(filepath.Join(f.Dir, n)); err != nil {
			return err
		}
	}
	return disk.WriteFile(path, []byte(text))
}

// ListPacks lists the packs of the bucket, with what is about to be removed. enter gets
// the ID of each and its size in bytes.
func (f *Fleet) ListPacks(enter func(disk.ID, int64)) error {
	now := Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.readMarkers(f.Ctx); err != nil {
		return err
	}
	err := f.Bucket.List(f.Ctx, layout.Packs+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.PackExt); ok {
			enter(id, o.Size)
			if strings.Compare(id.String(), f.newest.String()) > 0 {
				f.newest = id
			}
		}
	})
	if err == nil {
		f.Seen.Store(now)
	}
	return err
}

// PackSize asks for the size of a pack in bytes, which a damaged listing may have told wrong.
func (f *Fleet) PackSize(id disk.ID) (int64, error) {
	o, err := f.Bucket.Stat(f.Ctx, PackKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: %w", pack.ErrGone, err)
	}
	return o.Size, err
}
