package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
)

// setImages replaces the list of images. Two machines may have chosen the same name: the
// older image keeps it, the other one gets a piece of its ID.
func (s *Store) setImages(records map[disk.ID]fleet.Fetched) {
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
		if f.Err != nil {
			s.damaged = append(s.damaged, &RecordError{Path: s.recordPath(id), Err: f.Err})
			continue
		}
		im := &imageRec{id: id, rec: f.Rec}
		if s.images[f.Rec.Name] != nil {
			rec := *f.Rec
			rec.Name = fmt.Sprintf("%s~%x", rec.Name, id[12:])
			im.rec = &rec
		}
		if o := old[im.rec.Name]; o != nil && o.id == id && o.rec == f.Rec {
			im = o
		}
		s.images[im.rec.Name] = im
	}
}

// commit lists an image, once it is certain that everything it needs stays.
func (in *Ingest) commitShared(id disk.ID, rec *record.Record) error {
	sh := in.s.sh
	sh.UndoRecords()
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
	err = sh.Bucket.PutBytes(in.ctx, fleet.RecordKey(id), b, bucket.Always)
	if err == nil && fleet.Since(asked) > sh.Grace/2 {
		// It took so long that packs may be going, by a GC that did not see the record. That
		// our loop has asked meanwhile is not enough: it cannot save what we need before we are done.
		_, err = in.secure()
	}
	if err != nil {
		// It may have arrived all the same, but nobody was told that it is there.
		sh.Undo(id)
		return err
	}
	sh.NoteRecord(id, rec)
	return nil
}

// secure sees to it that what the image needs is in packs that nobody is about to remove.
// It returns the fleet.Now at which it began to ask the bucket for the last time.
func (in *Ingest) secure() (asked int64, err error) {
	for {
		asked = fleet.Now()
		if err := in.s.sh.Refresh(in.ctx, false); err != nil {
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
	rec, err := s.sh.RenameRecord(s.sh.Ctx, im.id, name)
	if err != nil {
		return fmt.Errorf("renaming image %q: %w", old, err)
	}
	s.sh.NoteRecord(im.id, rec)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, old)
	s.images[name] = &imageRec{id: im.id, rec: rec}
	return nil
}

// removeShared is Remove in a bucket.
func (s *Store) removeShared(name string) error {
	im, err := s.look(name)
	if err != nil {
		return err
	}
	return s.forgetShared(s.sh.Ctx, im)
}

// forgetShared removes the record of an image.
func (s *Store) forgetShared(ctx context.Context, im *imageRec) error {
	name := im.rec.Name
	if err := s.sh.RemoveRecord(ctx, im.id); err != nil {
		return fmt.Errorf("removing image %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[name] != nil && s.images[name].id == im.id {
		delete(s.images, name)
	}
	return nil
}
