package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Verify checks the store and calls report with a sentence for every fault: records, the
// index, footers of packs, and that every chunk of every image is where the index says.
// With readData every stored chunk is also read and checked against its hash. It returns
// an error that is ErrDamaged if anything was reported. It changes nothing but notes what is
// damaged, so that it is not reused: the next checkpoint with the same content stores it
// again, and then GC removes what is broken.
func (s *Store) Verify(ctx context.Context, readData bool, report func(string)) error {
	s.maint.Lock()
	defer s.maint.Unlock()
	ctx, cancel := s.bound(ctx)
	defer cancel()
	defer s.saveBad()
	if s.sh != nil { // what other machines did is no fault
		if err := errors.Join(s.sh.RefreshImages(ctx, fleet.Now()), s.sh.Refresh(ctx, true)); err != nil {
			return err
		}
	}
	v := &verification{s: s, begun: fleet.Now(), ctx: ctx, out: report, cut: map[*pack.Pack]int64{}, bad: map[chunk.Hash]*ChunkError{}, users: map[chunk.Hash][]string{}, unknown: map[chunk.Hash]*pack.Pack{}}
	recs, err := v.records()
	if err != nil {
		return err
	}
	for _, step := range []func() error{v.runs, func() error { return v.packs(readData) }} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, rec := range recs {
		if err := v.image(rec); err != nil {
			return err
		}
	}
	if s.sh != nil {
		if err := v.forgetRemoved(); err != nil {
			return err
		}
	}
	v.chunks()
	if v.down != nil {
		return fmt.Errorf("verify: not all could be looked at: %w", v.down)
	}
	if v.faults > 0 {
		return fmt.Errorf("verify: %d faults: %w", v.faults, ErrDamaged)
	}
	return nil
}

type verification struct {
	s      *Store
	begun  int64 // fleet.Now
	ctx    context.Context
	out    func(string)
	faults int
	cut    map[*pack.Pack]int64 // packs whose footer is lost, and how long they are
	bad    map[chunk.Hash]*ChunkError
	users  map[chunk.Hash][]string // images that need a bad chunk
	// unknown are chunks that a pack has but the index does not: garbage, unless an image
	// needs one. The index keeps one of two copies, and the pack of that one may have gone.
	unknown map[chunk.Hash]*pack.Pack
	ids     map[string]disk.ID // of images, in a bucket
	down    error              // why the bucket could not be asked
	read    func(n int64)      // is told of bytes of packs that were read
}

var errUnknown = errors.New("the index does not know it; delete the folder index while the store is closed, it is made again")

// maxBad bounds the faults that are kept to be told with their images.
const maxBad = 1 << 16

func (v *verification) fault(format string, args ...any) {
	v.faults++
	if v.out != nil {
		v.out(fmt.Sprintf(format, args...))
	}
}

// records reads every record again.
func (v *verification) records() ([]*record.Record, error) {
	s := v.s
	if s.sh != nil {
		return v.sharedRecords()
	}
	s.mu.Lock()
	closed, damaged, images := s.closed, slices.Clone(s.damaged), slices.Collect(maps.Values(s.images))
	s.mu.Unlock() // who wants to read or store an image must not wait for all records
	if closed {
		return nil, ErrClosed
	}
	for _, d := range damaged {
		if _, err := os.Stat(d.Path); !errors.Is(err, fs.ErrNotExist) {
			v.fault("%v", d)
		}
	}
	var recs []*record.Record
	for _, im := range images {
		_, err := s.readRecord(im.id)
		if errors.Is(err, fs.ErrNotExist) && !s.listed(im.id) {
			continue // it was removed meanwhile
		}
		recs = append(recs, im.rec)
		if err != nil {
			v.fault("image %q: record %s: %v", im.rec.Name, s.recordPath(im.id), err)
		}
	}
	slices.SortFunc(recs, func(a, b *record.Record) int { return strings.Compare(a.Name, b.Name) })
	return recs, nil
}

// listed reports whether an image is listed, under whatever name.
func (s *Store) listed(id disk.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.images {
		if im.id == id {
			return true
		}
	}
	return false
}

// runs checks every block of the index.
func (v *verification) runs() error {
	return v.s.ix.Check(v.ctx, func(err error) { v.fault("%v", err) })
}

// packs checks the footer of every pack, and what it holds if readData is set.
func (v *verification) packs(readData bool) error {
	list := v.s.snapshotPacks()
	total := int64(0)
	for _, p := range list {
		total += p.Size
	}
	v.read = progressOf(v.ctx, total)
	for _, p := range list {
		if p.Gone.Load() {
			v.read(p.Size)
			continue
		}
		info, err := v.s.readFooter(p)
		if errors.Is(err, pack.ErrGone) {
			continue // told with the chunks
		}
		if s := v.s; s.sh != nil && err != nil && !damage.Is(err) {
			return fmt.Errorf("verify: not all could be looked at: %w", err)
		}
		if err != nil {
			v.fault("pack %s: %v", p.Name(), err)
			if errors.Is(err, pack.ErrCut) {
				v.s.ix.CondemnFooter(p)
			}
			if st, err := os.Stat(v.s.files.Path(p)); err == nil {
				v.cut[p] = st.Size()
			} else if v.s.sh != nil {
				v.cut[p] = p.Size
			}
			info = &pack.Info{Entries: v.s.ix.EntriesOf(p)}
		} else {
			v.s.ix.ForgiveFooter(p)
		}
		if err := v.entries(p, info.Entries, readData); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) entries(p *pack.Pack, entries []pack.Entry, readData bool) error {
	for i := range entries {
		e := &entries[i]
		if err := v.ctx.Err(); err != nil {
			return err
		}
		_, ok, err := v.s.ix.Find(&e.Hash)
		if err == nil && !ok && !v.s.ix.IsBad(p, e.Off) && v.relearn() {
			_, ok, err = v.s.ix.Find(&e.Hash)
		}
		if err == nil && !ok && !v.s.ix.IsBad(p, e.Off) && len(v.unknown) < maxBad {
			v.unknown[e.Hash] = p
		}
		if !readData {
			continue
		}
		l := pack.Loc{P: p, Off: e.Off, Stored: e.Stored, Raw: e.Raw, Codec: e.Codec}
		raw := v.s.pools.Chunks.Get(int(e.Raw))
		err = v.s.readCopy(l, &e.Hash, raw.Data)
		raw.Release()
		v.read(int64(e.Stored))
		switch {
		case err == nil:
			v.s.ix.Forgive(l)
		case !p.Gone.Load():
			v.badCopy(l, &e.Hash, err)
		}
	}
	return nil
}

// relearn reports whether what the index lacks may be there now. That it lost it is no fault.
func (v *verification) relearn() bool {
	again, err := v.s.learnAgain(v.begun, true)
	if err != nil {
		v.fault("%v", err)
	}
	return again
}

func (v *verification) badCopy(l pack.Loc, h *chunk.Hash, err error) {
	if damage.Is(err) {
		v.s.ix.CondemnCopy(l)
	}
	if _, ok, ferr := v.s.ix.Find(h); ok && ferr == nil && damage.Is(err) {
		return // another copy is whole, this one is garbage
	}
	v.note(&ChunkError{Hash: *h, Pack: l.P.Name(), Err: err}, "")
}

// note keeps a bad chunk to be told with all the images that need it.
func (v *verification) note(err error, image string) {
	var be *BucketError
	if errors.As(err, &be) && !damage.Is(err) {
		v.down = be // says nothing of what is there
		return
	}
	var ce *ChunkError
	if !errors.As(err, &ce) {
		v.fault("image %q: %v", image, err)
		return
	}
	if p := v.unknown[ce.Hash]; p != nil {
		ce = &ChunkError{Hash: ce.Hash, Pack: p.Name(), Err: errUnknown}
	}
	if v.bad[ce.Hash] == nil {
		if len(v.bad) >= maxBad {
			v.fault("%v", blameList(ce, image))
			return
		}
		v.bad[ce.Hash] = ce
	}
	if image != "" && !slices.Contains(v.users[ce.Hash], image) {
		v.users[ce.Hash] = append(v.users[ce.Hash], image)
	}
}

func (v *verification) image(rec *record.Record) error {
	for _, t := range rec.Trees() {
		if t.Size == 0 {
			continue
		}
		err := v.s.walkLeaves(t.Span(), t.Level, nil, func(sp tree.Span) error {
			refs, err := v.s.leaf(sp)
			if err != nil {
				v.note(err, rec.Name) // the next leaf may be whole
				return v.ctx.Err()
			}
			return v.refs(rec.Name, refs)
		})
		if cerr := v.ctx.Err(); cerr != nil {
			return cerr
		}
		if err != nil {
			v.note(err, rec.Name)
		}
	}
	return nil
}

func (v *verification) refs(image string, refs []tree.Ref) error {
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		h := &refs[i].Hash
		l, ok, err := v.s.ix.Find(h)
		if err == nil && !ok && v.relearn() {
			l, ok, err = v.s.ix.Find(h)
		}
		switch {
		case err != nil:
			v.note(&ChunkError{Hash: *h, Err: err}, image)
		case !ok && v.bad[*h] != nil:
			v.note(v.bad[*h], image)
		case !ok:
			v.note(v.s.missing(h), image)
		case l.Raw != refs[i].Size:
			v.note(&ChunkError{Hash: *h, Pack: l.P.Name(), Err: fmt.Errorf("it has %d bytes, %d wanted", l.Raw, refs[i].Size)}, image)
		case v.beyond(&l):
			v.s.ix.CondemnCopy(l)
			v.note(&ChunkError{Hash: *h, Pack: l.P.Name(), Err: pack.ErrCut}, image)
		}
	}
	return v.ctx.Err()
}

// beyond reports whether a copy lies, in part, behind the end of a cut pack.
func (v *verification) beyond(l *pack.Loc) bool {
	size, cut := v.cut[l.P]
	return cut && int64(l.Off)+int64(l.Stored) > size
}

// chunks tells of every bad chunk and whose it is.
func (v *verification) chunks() {
	for h, ce := range v.bad {
		if names := v.users[h]; len(names) > 0 {
			slices.Sort(names)
			v.fault("%v; needed by image %q", ce, names)
		} else {
			v.fault("%v; no image is known to need it", ce)
		}
	}
}
