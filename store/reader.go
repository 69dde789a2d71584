package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Reader reads a committed image. It is safe for concurrent use, and what it reads stays
// there until Close, whatever Remove and GC do. Who reads in order is read ahead for.
type Reader struct {
	s      *Store
	rec    *record.Record
	view   view
	list   chunkList
	ahead  ahead
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
		if err := s.sh.freshen(s.sh.ctx, ago(min(packsFresh, s.sh.grace/4))); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	im, err := s.lookup(name)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	r := &Reader{s: s, rec: im.rec, view: newView(s)}
	r.ahead.init(s, &r.view, &r.list)
	s.readers[r] = struct{}{}
	s.mu.Unlock()
	if s.sh != nil {
		err = s.sh.claim(name, im.id)
	}
	if err == nil {
		r.list, err = s.loadSpans(im.rec.Data)
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
		if gone := s.sh.stillListed(im.rec.Name, im.id); errors.Is(gone, fs.ErrNotExist) {
			return gone
		}
	}
	return blame(err, im.rec.Name, -1)
}

// loadSpans lists the leaves of a tree.
func (s *Store) loadSpans(t tree.Root) (list chunkList, err error) {
	if t.Size == 0 {
		return list, nil
	}
	err = s.walkLeaves(t.Span(), t.Level, nil, func(sp tree.Span) error {
		if len(list.spans) >= maxSpans {
			return &ChunkError{Hash: t.Hash, Err: fmt.Errorf("%w: too many leaves", tree.ErrNode)}
		}
		list.size += sp.Size
		list.spans, list.ends = append(list.spans, sp), append(list.ends, list.size)
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
			return b, blame(err, r.rec.Name+"/"+name, -1)
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
	for _, sp := range list.spans {
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
	n, noted := 0, 0
	for n < len(p) {
		at := off + int64(n)
		if at >= r.rec.Data.Size {
			return n, io.EOF
		}
		if n >= noted {
			noted = n + int(r.ahead.note(at, min(int64(len(p)-n), r.rec.Data.Size-at, aheadBatch)))
		}
		if data, b, m := r.ahead.take(len(p)-n, at); m > 0 {
			n += g.Add(p[n:n+m], data, b)
			continue
		}
		i, base := tree.LeafAt(r.list.ends, at)
		m, err := r.view.readLeaf(r.rec.Name, p[n:], r.list.spans[i], base, at)
		if err != nil {
			return n, err
		}
		n += g.Own(p[n : n+m])
	}
	return n, nil
}

// Close lets GC remove what only this reader still needed.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return ErrClosed
	}
	r.ahead.stop()
	r.view.close()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	delete(r.s.readers, r)
	return nil
}
