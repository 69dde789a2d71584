package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
)

// fetched is a record as the bucket had it.
type fetched struct {
	etag string // "" if it has to be fetched again
	rec  *record.Record
	err  error // why it cannot be used
}

func recordKey(id disk.ID) string { return imagesName + "/" + id.String() + disk.ImgExt }

// refreshImages lists the images of all machines, unless that has begun at a bootTime or
// later.
func (sh *shared) refreshImages(ctx context.Context, notBefore int64) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := bootTime()
	if sh.listed >= notBefore {
		return nil
	}
	found := map[disk.ID]string{}
	err := sh.b.List(ctx, imagesName+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.ImgExt); ok && !sh.removed[id] {
			found[id] = o.ETag
		}
	})
	if err != nil {
		return err
	}
	for id := range sh.records {
		if _, ok := found[id]; !ok {
			found[id] = "" // gone, or the listing is old
		}
	}
	var wanted []disk.ID
	for id, etag := range found {
		if have, ok := sh.records[id]; !ok || etag == "" || have.etag != etag || have.err != nil {
			wanted = append(wanted, id)
		}
	}
	if err := sh.fetchRecords(ctx, wanted, found); err != nil {
		return err
	}
	sh.listed = now
	sh.s.setImages(sh.records)
	return nil
}

// fetchRecords gets records, several at once. Called with mu held.
func (sh *shared) fetchRecords(ctx context.Context, wanted []disk.ID, etags map[disk.ID]string) error {
	got := make([]fetched, len(wanted))
	parallel(len(wanted), func(i int) {
		rec, err := sh.readRecord(ctx, wanted[i])
		got[i] = fetched{etags[wanted[i]], rec, err}
	})
	for i, id := range wanted {
		var be *BucketError
		switch err := got[i].err; {
		case errors.Is(err, fs.ErrNotExist):
			delete(sh.records, id)
		case errors.As(err, &be), ctx.Err() != nil:
			return err
		default:
			sh.records[id] = got[i] // err, if any, says that it is damaged
		}
	}
	return nil
}

func (sh *shared) readRecord(ctx context.Context, id disk.ID) (*record.Record, error) {
	var rec *record.Record
	err := sh.b.GetParsed(ctx, recordKey(id), record.MaxLen, func(b []byte) (err error) {
		rec, err = record.Parse(sh.s.sec, id, b)
		return err
	})
	return rec, err
}

// parallel calls fn for 0 to n-1, as many at once as a bucket takes requests.
func parallel(n int, fn func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(n, bucket.Slots) {
		wg.Go(func() {
			for i := range next {
				fn(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// setImages replaces the list of images. Two machines may have chosen the same name: the
// older image keeps it, the other one gets a piece of its ID.
func (s *Store) setImages(records map[disk.ID]fetched) {
	ids := make([]disk.ID, 0, len(records))
	for id := range records {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b disk.ID) int { return cmp.Compare(a.String(), b.String()) })
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.images
	s.images, s.damaged = make(map[string]*imageRec, len(ids)), nil
	for _, id := range ids {
		f := records[id]
		if f.err != nil {
			s.damaged = append(s.damaged, &RecordError{Path: s.recordPath(id), Err: f.err})
			continue
		}
		im := &imageRec{id: id, rec: f.rec}
		if s.images[f.rec.Name] != nil {
			rec := *f.rec
			rec.Name = fmt.Sprintf("%s~%x", rec.Name, id[12:])
			im.rec = &rec
		}
		if o := old[im.rec.Name]; o != nil && o.id == id && o.rec == f.rec {
			im = o
		}
		s.images[im.rec.Name] = im
	}
}

// noteRecord enters a record that we wrote. etag is not known.
func (sh *shared) noteRecord(id disk.ID, rec *record.Record) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.records[id] = fetched{rec: rec}
}

// removeRecord removes a record. Listings may show it for a while; we know better.
func (sh *shared) removeRecord(ctx context.Context, id disk.ID) error {
	if err := sh.b.Remove(ctx, recordKey(id)); err != nil {
		return err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.records, id)
	sh.removed[id] = true
	return nil
}

// commit lists an image, once it is certain that everything it needs stays.
func (in *Ingest) commitShared(id disk.ID, rec *record.Record) error {
	sh := in.s.sh
	sh.undoRecords()
	in.s.w.Flush()
	if err := in.failed(); err != nil {
		return err
	}
	asked, err := in.secure()
	if err != nil {
		return err
	}
	b, err := record.File(in.s.sec, id, rec)
	if err != nil {
		return err
	}
	err = sh.b.PutBytes(in.ctx, recordKey(id), b, bucket.Always)
	if err == nil && since(asked) > sh.grace/2 {
		// It took so long that packs may be going, by a GC that did not see the record. That
		// our loop has asked meanwhile is not enough: it cannot save what we need before we are done.
		_, err = in.secure()
	}
	if err != nil {
		// It may have arrived all the same, but nobody was told that it is there.
		sh.mu.Lock()
		sh.removed[id], sh.undo[id] = true, true
		sh.mu.Unlock()
		sh.undoRecords()
		return err
	}
	sh.noteRecord(id, rec)
	return nil
}

// undoRecords removes records of commits that failed, or leaves them to the next call.
func (sh *shared) undoRecords() {
	ctx, cancel := context.WithTimeout(context.Background(), sh.b.Attempt)
	defer cancel()
	sh.mu.Lock()
	ids := slices.Collect(maps.Keys(sh.undo))
	sh.mu.Unlock()
	for _, id := range ids {
		if err := sh.b.Remove(ctx, recordKey(id)); err != nil {
			sh.s.o.Log(fmt.Sprintf("store %s: an image whose commit failed may be listed until it can be removed: %v", sh.b.URL, err))
			return
		}
		sh.mu.Lock()
		delete(sh.undo, id)
		sh.mu.Unlock()
	}
}

// secure sees to it that what the image needs is in packs that nobody is about to remove.
// It returns the bootTime at which it began to ask the bucket for the last time.
func (in *Ingest) secure() (asked int64, err error) {
	for {
		asked = bootTime()
		if err := in.s.sh.refresh(in.ctx, false); err != nil {
			return 0, err
		}
		if !in.endangered() {
			return asked, nil
		}
		if err := in.rescue(); err != nil {
			return 0, err
		}
		in.written()
		in.s.w.Flush()
		in.mu.Lock()
		err := in.err
		in.mu.Unlock()
		if err != nil {
			return 0, err
		}
	}
}

// refer notes that the image needs a chunk of a pack.
func (in *Ingest) refer(p *pack.Pack) {
	in.packsMu.Lock()
	defer in.packsMu.Unlock()
	in.packs[p] = struct{}{}
}

// endangered reports whether a pack that the image needs is about to go, or has gone.
func (in *Ingest) endangered() bool {
	in.packsMu.Lock()
	defer in.packsMu.Unlock()
	for p := range in.packs {
		if p.Doomed.Load() || p.Gone.Load() {
			return true
		}
	}
	return false
}

// resetPacks forgets which packs the image needs; rescue finds out anew.
func (in *Ingest) resetPacks() {
	in.packsMu.Lock()
	defer in.packsMu.Unlock()
	clear(in.packs)
}

// renameShared is Rename in a bucket. The record is looked at first: another machine may
// have removed the image.
func (s *Store) renameShared(old, name string) error {
	im, err := s.look(old)
	if err != nil || old == name {
		return err
	}
	s.mu.Lock()
	err = s.free(name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	rec, err := s.sh.renameRecord(s.sh.ctx, im.id, name)
	if err != nil {
		return fmt.Errorf("renaming image %q: %w", old, err)
	}
	s.sh.noteRecord(im.id, rec)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, old)
	s.images[name] = &imageRec{id: im.id, rec: rec}
	return nil
}

// renameTries is how often a record is read again that another machine has changed meanwhile.
const renameTries = 5

// renameRecord puts another name into a record. The put asks for the record to be what was read:
// one that another machine removes just then must not come back.
func (sh *shared) renameRecord(ctx context.Context, id disk.ID, name string) (*record.Record, error) {
	for tries := 1; ; tries++ {
		o, err := sh.b.Stat(ctx, recordKey(id))
		if err != nil {
			return nil, err
		}
		rec, err := sh.readRecord(ctx, id)
		if err != nil || tries > 1 && rec.Name == name && rec.Kept {
			return rec, err // done before, if it is so: the answer to the put was lost
		}
		rec.Name, rec.Kept = name, true
		b, err := record.File(sh.s.sec, id, rec)
		if err == nil {
			err = sh.b.PutBytes(ctx, recordKey(id), b, bucket.IfStill(o.ETag))
		}
		if !errors.Is(err, fs.ErrExist) || tries == renameTries {
			return rec, err
		}
	}
}

// removeShared is Remove in a bucket.
func (s *Store) removeShared(name string) error {
	im, err := s.look(name)
	if err != nil {
		return err
	}
	return s.forgetShared(s.sh.ctx, im)
}

// forgetShared removes the record of an image.
func (s *Store) forgetShared(ctx context.Context, im *imageRec) error {
	name := im.rec.Name
	if err := s.sh.removeRecord(ctx, im.id); err != nil {
		return fmt.Errorf("removing image %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[name] != nil && s.images[name].id == im.id {
		delete(s.images, name)
	}
	return nil
}
