package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/record"
)

// Attachment is a small file beside an image.
type Attachment struct {
	Name string
	Size int64
}

// Image is what the store knows of an image.
type Image struct {
	Name        string
	Size        int64     // bytes that a reader sees
	Created     time.Time // when its ingest began
	Unique      int64     // bytes in the store that this image brought, as they were first compressed
	Chunks      int64     // pieces it is made of
	Attachments []Attachment
	Kept        bool   // it was renamed: Prune leaves it alone
	Host        string // machine that took it, see Options.Host
	Series      string // what it is one of many of, see Ingest.SetSeries
}

// imageOf is what a record tells.
func imageOf(r *record.Record) Image {
	im := Image{Name: r.Name, Size: r.Data.Size, Created: time.Unix(0, r.Created), Unique: r.Unique, Chunks: r.Chunks,
		Kept: r.Kept, Host: r.Host, Series: r.Series}
	for i := range r.Attach {
		im.Attachments = append(im.Attachments, Attachment{r.Attach[i].Name, r.Attach[i].Data.Size})
	}
	return im
}

// List returns every image, the oldest first.
func (s *Store) List() ([]Image, error) {
	if err := s.lookAround(fleet.Ago(imagesFresh)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	list := make([]Image, 0, len(s.images))
	for _, im := range s.images {
		list = append(list, imageOf(im.rec))
	}
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Get returns one image, or fs.ErrNotExist.
func (s *Store) Get(name string) (Image, error) {
	im, err := s.look(name)
	if err != nil {
		return Image{}, err
	}
	return imageOf(im.rec), nil
}

// look finds a listed image; in a bucket also one that another machine has just made.
func (s *Store) look(name string) (*imageRec, error) {
	begun := fleet.Now()
	s.mu.Lock()
	im, err := s.lookup(name)
	s.mu.Unlock()
	if !errors.Is(err, fs.ErrNotExist) || s.sh == nil {
		return im, err
	}
	if err := s.lookAround(begun); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookup(name)
}

// lookAround learns which images other machines have made or removed, unless it has begun to
// do so at a fleet.Now or later.
func (s *Store) lookAround(notBefore int64) error {
	if s.sh == nil {
		return nil
	}
	return s.sh.RefreshImages(s.sh.Ctx, notBefore)
}

// lookup finds a listed image. Called with mu held.
func (s *Store) lookup(name string) (*imageRec, error) {
	if s.closed {
		return nil, ErrClosed
	}
	im := s.images[name]
	if im == nil {
		return nil, fmt.Errorf("image %q: %w", name, fs.ErrNotExist)
	}
	return im, nil
}

// free reports whether an image may get this name. Called with mu held.
func (s *Store) free(name string) error {
	if err := record.CheckName(name); err != nil {
		return err
	}
	if s.images[name] != nil {
		return fmt.Errorf("image %q: %w", name, fs.ErrExist)
	}
	for in := range s.running {
		if in.name == name {
			return fmt.Errorf("image %q is being written: %w", name, fs.ErrExist)
		}
	}
	return nil
}

// Rename gives an image another name. fs.ErrExist if that is taken. From then on Prune
// leaves it alone.
func (s *Store) Rename(old, name string) error {
	if s.sh != nil {
		return s.renameShared(old, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.lookup(old)
	if err != nil || old == name {
		return err
	}
	if err := s.free(name); err != nil {
		return err
	}
	rec := *im.rec
	rec.Name, rec.Kept = name, true
	if err := s.writeRecord(im.id, &rec); err != nil {
		return fmt.Errorf("renaming image %q: %w", old, err)
	}
	delete(s.images, old)
	s.images[name] = &imageRec{id: im.id, rec: &rec}
	return nil
}

// Remove takes an image out of the list. Open readers read on; GC frees the space later.
func (s *Store) Remove(name string) error {
	if s.sh != nil {
		return s.removeShared(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.lookup(name)
	if err != nil {
		return err
	}
	return s.remove(im)
}

// remove is Remove with mu held.
func (s *Store) remove(im *imageRec) error {
	name := im.rec.Name
	if err := os.Remove(s.recordPath(im.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing image %q: %w", name, err)
	}
	delete(s.images, name)
	if err := disk.SyncDir(filepath.Join(s.dir, layout.Images)); err != nil {
		return fmt.Errorf("removing image %q: %w", name, err)
	}
	return nil
}

// Stats tells what a store holds.
type Stats struct {
	Images  int
	Logical int64 // bytes of all images as a reader sees them
	Unique  int64 // bytes in packs that these images brought, each what was new with it
	Kept    int   // images that Prune leaves alone
	Stored  int64 // bytes of all packs, garbage included
	Packs   int
	Chunks  int64   // distinct ones, about: copies that a crash left count twice
	Ratio   float64 // Logical / Stored; 0 when nothing is stored
}

// Stats adds up what the store holds.
func (s *Store) Stats() (Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Stats{}, ErrClosed
	}
	st := Stats{Images: len(s.images), Packs: len(s.packs)}
	for _, im := range s.images {
		st.Logical += im.rec.Data.Size
		st.Unique += im.rec.Unique
		if im.rec.Kept {
			st.Kept++
		}
	}
	for _, p := range s.packs {
		st.Stored += p.Size
	}
	st.Chunks = s.ix.Chunks()
	if st.Stored > 0 {
		st.Ratio = float64(st.Logical) / float64(st.Stored)
	}
	return st, nil
}
