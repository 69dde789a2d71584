package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// Open opens every run. log hears of a damaged one, which is removed: its packs know what was in it.
func (x *Index) Open(known func(disk.ID, int64, int64) *pack.Pack, log func(string)) error {
	ents, err := os.ReadDir(x.dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if _, ok := disk.ParseID(e.Name(), disk.RunExt); !ok {
			continue
		}
		path := filepath.Join(x.dir, e.Name())
		r, err := openRun(path, known)
		if errors.Is(err, ErrRun) {
			log(fmt.Sprintf("store: %v; making it again", err))
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
		if r != nil {
			x.runs = append(x.runs, r)
		}
	}
	return nil
}

// Order puts the newest run first and drops what others have too.
func (x *Index) Order() error {
	slices.SortFunc(x.runs, func(a, b *run) int { return cmp.Compare(b.newest(), a.newest()) })
	return x.dropCovered()
}

func (r *run) newest() (t int64) {
	for _, p := range r.packs {
		t = max(t, p.Created)
	}
	return t
}

// dropCovered removes runs whose packs are all in another one: a merge that a crash cut
// short of removing what it had merged.
func (x *Index) dropCovered() error {
	for _, o := range slices.Clone(x.runs) {
		if !slices.Contains(x.runs, o) {
			continue // covered itself
		}
		have := make(map[*pack.Pack]struct{}, len(o.packs))
		for _, p := range o.packs {
			have[p] = struct{}{}
		}
		for _, r := range slices.Clone(x.runs) {
			if r == o || !r.coveredBy(have) {
				continue
			}
			r.f.Close() // read only
			if err := os.Remove(r.path); err != nil {
				return err
			}
			x.runs = slices.DeleteFunc(x.runs, func(o *run) bool { return o == r })
		}
	}
	return nil
}

// coveredBy reports whether all packs of a run that exist are in have.
func (r *run) coveredBy(have map[*pack.Pack]struct{}) bool {
	for _, p := range r.packs {
		if _, ok := have[p]; !ok && !p.Gone.Load() {
			return false
		}
	}
	return true
}

// Add opens a run that was brought here.
func (x *Index) Add(path string, known func(id disk.ID, size, created int64) *pack.Pack) error {
	r, err := openRun(path, known)
	if err == nil {
		x.runs = append(x.runs, r)
	}
	return err
}

// Largest is the file of the run that knows the most packs, and these; none if there is no run.
func (x *Index) Largest() (path string, packs []*pack.Pack) {
	for _, r := range x.runs {
		if len(r.packs) > len(packs) {
			path, packs = r.path, r.packs
		}
	}
	return path, packs
}

// Check reads every block of the runs and reports what is wrong.
func (x *Index) Check(ctx context.Context, fault func(error)) error {
	for _, r := range x.runs {
		it := r.iter()
		for {
			more, err := it.next()
			if err != nil {
				fault(err)
				break
			}
			if !more {
				break
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// RunPacks reads which packs a run of size bytes knows.
func RunPacks(f io.ReaderAt, size int64) ([]disk.ID, error) {
	if size < runHeadLen {
		return nil, fmt.Errorf("%w: %d bytes", ErrRun, size)
	}
	head := make([]byte, runHeadLen)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[8:]))
	if string(head[:8]) != runMagic || n > maxRunPacks || runHeadLen+n*runPackLen > size {
		return nil, fmt.Errorf("%w: no header", ErrRun)
	}
	table := make([]byte, n*runPackLen)
	if _, err := f.ReadAt(table, runHeadLen); err != nil && n > 0 {
		return nil, err
	}
	if runSum(head, table) != chunk.Hash(head[32:]) {
		return nil, fmt.Errorf("%w: checksum", ErrRun)
	}
	ids := make([]disk.ID, n)
	for i := range ids {
		ids[i] = disk.ID(table[i*runPackLen:])
	}
	return ids, nil
}
