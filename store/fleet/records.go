package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/record"
)

// Fetched is a record as the bucket had it.
type Fetched struct {
	etag string // "" if it has to be fetched again
	Rec  *record.Record
	Err  error // why it cannot be used
}

// RecordKey is the key of the record of an image.
func RecordKey(id disk.ID) string { return layout.Images + "/" + id.String() + disk.ImgExt }

// RefreshImages lists the images of all machines, unless that has begun at a Now or
// later.
func (f *Fleet) RefreshImages(ctx context.Context, notBefore int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := Now()
	if f.listed >= notBefore {
		return nil
	}
	found := map[disk.ID]string{}
	err := f.Bucket.List(ctx, layout.Images+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.ImgExt); ok && !f.removed[id] {
			found[id] = o.ETag
		}
	})
	if err != nil {
		return err
	}
	for id := range f.records {
		if _, ok := found[id]; !ok {
			found[id] = "" // gone, or the listing is old
		}
	}
	var wanted []disk.ID
	for id, etag := range found {
		if have, ok := f.records[id]; !ok || etag == "" || have.etag != etag || have.Err != nil {
			wanted = append(wanted, id)
		}
	}
	if err := f.fetchRecords(ctx, wanted, found); err != nil {
		return err
	}
	f.listed = now
	f.local.SetImages(f.records)
	return nil
}

// fetchRecords gets records, several at once. Called with mu held.
func (f *Fleet) fetchRecords(ctx context.Context, wanted []disk.ID, etags map[disk.ID]string) error {
	got := make([]Fetched, len(wanted))
	bucket.Parallel(len(wanted), func(i int) {
		rec, err := f.ReadRecord(ctx, wanted[i])
		got[i] = Fetched{etags[wanted[i]], rec, err}
	})
	for i, id := range wanted {
		var be *bucket.Error
		switch err := got[i].Err; {
		case errors.Is(err, fs.ErrNotExist):
			delete(f.records, id)
		case errors.As(err, &be), ctx.Err() != nil:
			return err
		default:
			f.records[id] = got[i] // err, if any, says that it is damaged
		}
	}
	return nil
}

func (f *Fleet) ReadRecord(ctx context.Context, id disk.ID) (*record.Record, error) {
	var rec *record.Record
	err := f.Bucket.GetParsed(ctx, RecordKey(id), record.MaxLen, func(b []byte) (err error) {
		rec, err = record.Parse(f.c.Sec, id, b)
		return err
	})
	return rec, err
}

// NoteRecord enters a record that we wrote. etag is not known.
func (f *Fleet) NoteRecord(id disk.ID, rec *record.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[id] = Fetched{Rec: rec}
}

// RemoveRecord removes a record. Listings may show it for a while; we know better.
func (f *Fleet) RemoveRecord(ctx context.Context, id disk.ID) error {
	if err := f.Bucket.Remove(ctx, RecordKey(id)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.records, id)
	f.removed[id] = true
	return nil
}

// Undo removes a record whose commit failed, now or as soon as it can be: it may be there all
// the same.
func (f *Fleet) Undo(id disk.ID) {
	f.mu.Lock()
	f.removed[id], f.undo[id] = true, true
	f.mu.Unlock()
	f.UndoRecords()
}

// UndoRecords removes records of commits that failed, or leaves them to the next call.
func (f *Fleet) UndoRecords() {
	ctx, cancel := context.WithTimeout(context.Background(), f.Bucket.Attempt)
	defer cancel()
	f.mu.Lock()
	ids := slices.Collect(maps.Keys(f.undo))
	f.mu.Unlock()
	for _, id := range ids {
		if err := f.Bucket.Remove(ctx, RecordKey(id)); err != nil {
			f.c.Log(fmt.Sprintf("store %s: an image whose commit failed may be listed until it can be removed: %v", f.Bucket.URL, err))
			return
		}
		f.mu.Lock()
		delete(f.undo, id)
		f.mu.Unlock()
	}
}

// RenameRecord puts another name into a record. The put asks for the record to be what was read:
// one that another machine removes just then must not come back.
func (f *Fleet) RenameRecord(ctx context.Context, id disk.ID, name string) (*record.Record, error) {
	for tries := 1; ; tries++ {
		o, err := f.Bucket.Stat(ctx, RecordKey(id))
		if err != nil {
			return nil, err
		}
		rec, err := f.ReadRecord(ctx, id)
		if err != nil || tries > 1 && rec.Name == name && rec.Kept {
			return rec, err // done before, if it is so: the answer to the put was lost
		}
		rec.Name, rec.Kept = name, true
		b, err := record.File(f.c.Sec, id, rec)
		if err == nil {
			err = f.Bucket.PutBytes(ctx, RecordKey(id), b, bucket.IfStill(o.ETag))
		}
		if !errors.Is(err, fs.ErrExist) || tries == renameTries {
			return rec, err
		}
	}
}

// renameTries is how often a record is read again that another machine has changed meanwhile.
const renameTries = 5
