package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
)

// Machines share what they know of packs: a GC puts its largest run into the bucket, so
// that a new machine fetches a few large objects and not the footer of every pack.

// shareFrom is how many packs a run must bring for it to be worth an object.
const shareFrom = 64

func runKey(id disk.ID) string { return layout.Index + "/" + id.String() + disk.RunExt }

// sharedRun is a run in the bucket.
type sharedRun struct {
	id    disk.ID
	size  int64
	packs []disk.ID
}

// rangeReader reads an object of a bucket by ranges.
type rangeReader struct {
	ctx context.Context
	b   *bucket.Bucket
	key string
}

func (r *rangeReader) ReadAt(p []byte, off int64) (int, error) {
	return len(p), r.b.Get(r.ctx, r.key, p, off)
}

// runs lists the runs in the bucket. One that cannot be read helps nobody and is left out.
func (f *Fleet) runs(ctx context.Context) (list []sharedRun, err error) {
	err = f.Bucket.List(ctx, layout.Index+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.RunExt); ok {
			list = append(list, sharedRun{id: id, size: o.Size})
		}
	})
	if err != nil {
		return nil, err
	}
	bucket.Parallel(len(list), func(i int) {
		r := &list[i]
		var err error // ours: several are read at once
		if r.packs, err = index.RunPacks(&rangeReader{ctx, f.Bucket, runKey(r.id)}, r.size); err != nil {
			f.c.Log(fmt.Sprintf("store %s: %s: %v; ignored", f.Bucket.URL, runKey(r.id), err))
		}
	})
	return slices.DeleteFunc(list, func(r sharedRun) bool { return len(r.packs) == 0 }), nil
}

// FetchRuns brings those runs here that know many packs which no run here does.
func (f *Fleet) FetchRuns(ix *index.Index, packs map[disk.ID]*pack.Pack, known func(disk.ID, int64, int64) *pack.Pack) error {
	unknown := map[disk.ID]bool{}
	for id, p := range packs {
		if !p.Sealed.Load() {
			unknown[id] = true
		}
	}
	if len(unknown) < shareFrom {
		return nil
	}
	list, err := f.runs(f.Ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b sharedRun) int { return len(b.packs) - len(a.packs) })
	for _, r := range list {
		news := slices.DeleteFunc(r.packs, func(id disk.ID) bool { return !unknown[id] })
		if len(news) < shareFrom {
			continue
		}
		if err := f.fetchRun(ix, r, known); err != nil {
			f.c.Log(fmt.Sprintf("store %s: %s: %v; the packs tell the same", f.Bucket.URL, runKey(r.id), err))
			continue
		}
		for _, id := range news {
			delete(unknown, id)
		}
	}
	return nil
}

// fetchRun brings a run here and opens it.
func (f *Fleet) fetchRun(ix *index.Index, r sharedRun, known func(disk.ID, int64, int64) *pack.Pack) error {
	path := filepath.Join(f.Dir, layout.Index, r.id.String()+disk.RunExt)
	file, err := os.OpenFile(path+disk.TmpExt, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	piece := make([]byte, min(r.size, 4<<20))
	for off := int64(0); off < r.size && err == nil; off += int64(len(piece)) {
		piece = piece[:min(int64(len(piece)), r.size-off)]
		if err = f.Bucket.Get(f.Ctx, runKey(r.id), piece, off); err == nil {
			_, err = file.Write(piece)
		}
	}
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = disk.Publish(path+disk.TmpExt, path)
	}
	if err != nil {
		os.Remove(path + disk.TmpExt) // best effort: Open removes what stays
		return err
	}
	if err := ix.Add(path, known); err != nil {
		os.Remove(path) // best effort: Open makes it again
		return err
	}
	return nil
}

// ShareRun puts the largest run into the bucket if it brings much that none there has, and
// removes those that it makes superfluous. Called while nobody else replaces runs.
func (f *Fleet) ShareRun(ctx context.Context, ix *index.Index) error {
	path, packs := ix.Largest()
	if len(packs) < shareFrom {
		return nil
	}
	list, err := f.runs(ctx)
	if err != nil {
		return err
	}
	mine := map[disk.ID]bool{}
	for _, p := range packs {
		mine[p.ID] = !p.Gone.Load()
	}
	news := len(packs)
	for _, r := range list {
		both := 0
		for _, id := range r.packs {
			if mine[id] {
				both++
			}
		}
		news = min(news, len(packs)-both)
	}
	if news < shareFrom {
		return nil
	}
	id, _ := disk.ParseID(filepath.Base(path), disk.RunExt)
	if err := f.putRun(ctx, id, path); err != nil {
		return err
	}
	for _, r := range list {
		if r.id != id && f.superfluous(&r, mine) {
			if err := f.Bucket.Remove(ctx, runKey(r.id)); err != nil {
				return err
			}
		}
	}
	return nil
}

// superfluous reports whether every pack of a run that still exists is in another one.
func (f *Fleet) superfluous(r *sharedRun, mine map[disk.ID]bool) bool {
	for _, id := range r.packs {
		if !mine[id] && f.local.Has(id) {
			return false
		}
	}
	return true
}

// putRun uploads a run like a pack.
func (f *Fleet) putRun(ctx context.Context, id disk.ID, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	u := f.Bucket.NewUpload(ctx, runKey(id), file)
	u.Advance(st.Size())
	return u.Finish(st.Size())
}
