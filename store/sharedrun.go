package store

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
	"github.com/ckptfs/ckptfs/store/pack"
)

// Machines share what they know of packs: a GC puts its largest run into the bucket, so
// that a new machine fetches a few large objects and not the footer of every pack.

// shareFrom is how many packs a run must bring for it to be worth an object.
const shareFrom = 64

func runKey(id disk.ID) string { return indexName + "/" + id.String() + disk.RunExt }

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
func (sh *shared) runs(ctx context.Context) (list []sharedRun, err error) {
	err = sh.b.List(ctx, indexName+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.RunExt); ok {
			list = append(list, sharedRun{id: id, size: o.Size})
		}
	})
	if err != nil {
		return nil, err
	}
	parallel(len(list), func(i int) {
		r := &list[i]
		var err error // ours: several are read at once
		if r.packs, err = index.RunPacks(&rangeReader{ctx, sh.b, runKey(r.id)}, r.size); err != nil {
			sh.s.o.Log(fmt.Sprintf("store %s: %s: %v; ignored", sh.b.URL, runKey(r.id), err))
		}
	})
	return slices.DeleteFunc(list, func(r sharedRun) bool { return len(r.packs) == 0 }), nil
}

// fetchRuns brings those runs here that know many packs which no run here does.
func (sh *shared) fetchRuns(packs map[disk.ID]*pack.Pack, known func(disk.ID, int64, int64) *pack.Pack) error {
	unknown := map[disk.ID]bool{}
	for id, p := range packs {
		if !p.Sealed.Load() {
			unknown[id] = true
		}
	}
	if len(unknown) < shareFrom {
		return nil
	}
	list, err := sh.runs(sh.ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b sharedRun) int { return len(b.packs) - len(a.packs) })
	for _, r := range list {
		news := slices.DeleteFunc(r.packs, func(id disk.ID) bool { return !unknown[id] })
		if len(news) < shareFrom {
			continue
		}
		if err := sh.fetchRun(r, known); err != nil {
			sh.s.o.Log(fmt.Sprintf("store %s: %s: %v; the packs tell the same", sh.b.URL, runKey(r.id), err))
			continue
		}
		for _, id := range news {
			delete(unknown, id)
		}
	}
	return nil
}

// fetchRun brings a run here and opens it.
func (sh *shared) fetchRun(r sharedRun, known func(disk.ID, int64, int64) *pack.Pack) error {
	path := filepath.Join(sh.s.dir, indexName, r.id.String()+disk.RunExt)
	f, err := os.OpenFile(path+disk.TmpExt, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	piece := make([]byte, min(r.size, 4<<20))
	for off := int64(0); off < r.size && err == nil; off += int64(len(piece)) {
		piece = piece[:min(int64(len(piece)), r.size-off)]
		if err = sh.b.Get(sh.ctx, runKey(r.id), piece, off); err == nil {
			_, err = f.Write(piece)
		}
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = disk.Publish(path+disk.TmpExt, path)
	}
	if err != nil {
		os.Remove(path + disk.TmpExt) // best effort: Open removes what stays
		return err
	}
	if err := sh.s.ix.Add(path, known); err != nil {
		os.Remove(path) // best effort: Open makes it again
		return err
	}
	return nil
}

// shareRun puts the largest run into the bucket if it brings much that none there has, and
// removes those that it makes superfluous. Called with maint held.
func (sh *shared) shareRun(ctx context.Context) error {
	path, packs := sh.s.ix.Largest()
	if len(packs) < shareFrom {
		return nil
	}
	list, err := sh.runs(ctx)
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
	if err := sh.putRun(ctx, id, path); err != nil {
		return err
	}
	for _, r := range list {
		if r.id != id && sh.superfluous(&r, mine) {
			if err := sh.b.Remove(ctx, runKey(r.id)); err != nil {
				return err
			}
		}
	}
	return nil
}

// superfluous reports whether every pack of a run that still exists is in another one.
func (sh *shared) superfluous(r *sharedRun, mine map[disk.ID]bool) bool {
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	for _, id := range r.packs {
		if !mine[id] && sh.s.packs[id] != nil {
			return false
		}
	}
	return true
}

// putRun uploads a run like a pack.
func (sh *shared) putRun(ctx context.Context, id disk.ID, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	u := sh.b.NewUpload(ctx, runKey(id), f)
	u.Advance(st.Size())
	return u.Finish(st.Size())
}
