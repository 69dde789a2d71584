package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/ahead"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Reader reads a committed image. It is safe for concurrent use, and what it reads stays
// there until Close, whatever Remove and GC do. Who reads in order is read ahead for.
type Reader struct {
	s      *Store
	rec    *record.Record
	ahead  *ahead.Reader
	closed atomic.Bool
}

// maxSpans bounds the leaves of an image.
const maxSpans = 1 << 26

// OpenImage opens an image for reading.
func (s *Store) OpenImage(name string) (*Reader, error) {
	if s.sh != nil {
		if _, err := s.look(name); err != nil {
			return nil, err
		}
		if err := s.sh.Freshen(s.sh.Ctx, fleet.Ago(min(packsFresh, s.sh.Grace/4))); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	im, err := s.lookup(name)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	r := &Reader{s: s, rec: im.rec, ahead: ahead.New((*source)(s), s.pools, s.o.ReadAhead)}
	s.readers[r] = struct{}{}
	s.mu.Unlock()
	if s.sh != nil {
		err = s.sh.Claim(name, im.id)
	}
	if err == nil {
		var list ahead.List
		list, err = s.loadSpans(im.rec.Data)
		r.ahead.SetList(list)
	}
	if err != nil {
		r.Close()
		return nil, s.whyNot(im, err)
	}
	return r, nil
}

// whyNot says why an image cannot be opened: another machine may have removed it.
func (s *Store) whyNot(im *imageRec, err error) error {
	if s.sh != nil && errors.Is(err, ErrDamaged) {
		if gone := s.sh.StillListed(im.rec.Name, im.id); errors.Is(gone, fs.ErrNotExist) {
			return gone
		}
	}
	return blameList(err, im.rec.Name)
}

// loadSpans lists the leaves of a tree.
func (s *Store) loadSpans(t tree.Root) (list ahead.List, err error) {
	if t.Size == 0 {
		return list, nil
	}
	err = s.walkLeaves(t.Span(), t.Level, nil, func(sp tree.Span) error {
		if len(list.Spans) >= maxSpans {
			return &ChunkError{Hash: t.Hash, Err: fmt.Errorf("%w: too many leaves", tree.ErrNode)}
		}
		list.Size += sp.Size
		list.Spans, list.Ends = append(list.Spans, sp), append(list.Ends, list.Size)
		return nil
	})
	return list, err
}

// Name returns the name the image had when it was opened.
func (r *Reader) Name() string { return r.rec.Name }

// Size returns the length of the image in bytes.
func (r *Reader) Size() int64 { return r.rec.Data.Size }

// Image returns what the store knows of the image.
func (r *Reader) Image() Image { return imageOf(r.rec) }

// Attachments lists the small files beside the image.
func (r *Reader) Attachments() []Attachment { return imageOf(r.rec).Attachments }

// Attachment returns the content of one of them, or fs.ErrNotExist.
func (r *Reader) Attachment(name string) ([]byte, error) {
	if r.closed.Load() {
		return nil, ErrClosed
	}
	for i := range r.rec.Attach {
		if a := &r.rec.Attach[i]; a.Name == name {
			b, err := r.s.readAll(a.Data)
			return b, blameList(err, r.rec.Name+"/"+name)
		}
	}
	return nil, fmt.Errorf("image %q has no %q: %w", r.rec.Name, name, fs.ErrNotExist)
}

// readAll returns all bytes of a small tree.
func (s *Store) readAll(t tree.Root) ([]byte, error) {
	list, err := s.loadSpans(t)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, t.Size)
	for _, sp := range list.Spans {
		refs, err := s.leaf(sp)
		if err != nil {
			return nil, err
		}
		for i := range refs {
			n := len(out)
			out = append(out, make([]byte, refs[i].Size)...)
			if refs[i].Zero {
				continue
			}
			if err := s.readChunk(&refs[i].Hash, out[n:]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// ReadAt reads bytes of the image, each chunk checked against its hash. Damage comes as a
// *ChunkError.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.read(nil, p, off) }

// Gather is ReadAt for who hands the bytes on and does not need them in one piece: what was
// read ahead is not copied. p is for what was not. g.Slices hold as many bytes as it
// returns, and must be released even after an error.
func (r *Reader) Gather(g *Gathered, p []byte, off int64) (int, error) {
	return r.read(g, p, off)
}

// read is ReadAt, or Gather if g is not nil.
func (r *Reader) read(g *Gathered, p []byte, off int64) (int, error) {
	if r.closed.Load() {
		return 0, ErrClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("image %q: offset %d is negative", r.rec.Name, off)
	}
	n, err := r.ahead.Read(g, p, off)
	return n, blame(err, r.rec.Name)
}

// Close lets GC remove what only this reader still needed.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return ErrClosed
	}
	r.ahead.Close()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	delete(r.s.readers, r)
	return nil
}
