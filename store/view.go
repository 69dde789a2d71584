package store

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/tree"
)

// view reads the chunks of one image with small caches: of leaves of its list, and of
// chunks that were read in part.
type view struct {
	s      *Store
	leaves *cache.Cache[[]tree.Ref]
	chunks *cache.Cache[*cache.Buf]
}

const (
	cachedLeaves = 16
	cachedChunks = 16
)

func newView(s *Store) view {
	return view{s: s, leaves: cache.New[[]tree.Ref](cachedLeaves, nil), chunks: cache.New(cachedChunks, (*cache.Buf).Release)}
}

// close gives the buffers back.
func (v *view) close() { v.chunks.Close() }

// leaf returns the entries of a leaf.
func (v *view) leaf(sp tree.Span) ([]tree.Ref, error) {
	e, err := v.leaves.Get(&sp.Hash, func() ([]tree.Ref, error) { return v.s.leaf(sp) })
	if err != nil {
		return nil, err
	}
	defer v.leaves.Done(e)
	return e.Val, nil
}

// readLeaf copies bytes at off into p, out of one chunk of the leaf that begins at base.
func (v *view) readLeaf(image string, p []byte, leaf tree.Span, base, off int64) (int, error) {
	refs, err := v.leaf(leaf)
	if err != nil {
		return 0, blame(err, image, -1)
	}
	i, start := tree.Locate(refs, base, off)
	if i == len(refs) {
		return 0, blame(&ChunkError{Hash: leaf.Hash, Err: tree.ErrNode}, image, -1)
	}
	return v.copyChunk(image, p, &refs[i], start, off)
}

// copyChunk copies bytes at off into p, out of the chunk that begins at start.
func (v *view) copyChunk(image string, p []byte, ref *tree.Ref, start, off int64) (int, error) {
	skip := int(off - start)
	n := min(len(p), int(ref.Size)-skip)
	if ref.Zero {
		clear(p[:n])
		return n, nil
	}
	e := v.chunks.Peek(&ref.Hash)
	var err error
	switch {
	case e != nil:
	case n == int(ref.Size):
		if err := v.s.readChunk(&ref.Hash, p[:n:n]); err != nil {
			return 0, blame(err, image, start)
		}
		return n, nil
	default:
		if e, err = v.chunks.Get(&ref.Hash, func() (*cache.Buf, error) { return v.s.chunk(ref) }); err != nil {
			return 0, blame(err, image, start)
		}
	}
	defer v.chunks.Done(e)
	if len(e.Val.Data) != int(ref.Size) {
		return 0, blame(&ChunkError{Hash: ref.Hash, Err: codec.ErrMismatch}, image, start)
	}
	return copy(p[:n], e.Val.Data[skip:]), nil
}

// chunk returns a whole chunk in a buffer of its own.
func (s *Store) chunk(ref *tree.Ref) (*cache.Buf, error) {
	b := s.bufs.Get(int(ref.Size))
	if err := s.readChunk(&ref.Hash, b.Data); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// blame says in a ChunkError which image it was read for.
func blame(err error, image string, off int64) error {
	var ce *ChunkError
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	out := *ce
	out.Image, out.Offset = image, off
	return &out
}

// leaf reads and decodes a leaf of a chunk list.
func (s *Store) leaf(sp tree.Span) ([]tree.Ref, error) {
	b, err := s.readNode(&sp.Hash)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	refs, total, err := tree.DecodeLeaf(b.Data)
	if err == nil && total != sp.Size {
		err = fmt.Errorf("%w: %d bytes, %d expected", tree.ErrNode, total, sp.Size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.Hash, Err: err}
	}
	return refs, nil
}

// inner reads and decodes a node above the leaves.
func (s *Store) inner(sp tree.Span, level int) ([]tree.Span, error) {
	b, err := s.readNode(&sp.Hash)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	spans, total, err := tree.DecodeInner(b.Data, level)
	if err == nil && total != sp.Size {
		err = fmt.Errorf("%w: %d bytes, %d expected", tree.ErrNode, total, sp.Size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.Hash, Err: err}
	}
	return spans, nil
}

// walkLeaves calls fn for every leaf below a node, in order. seen, if set, is asked about
// every node first; what it knows is not entered.
func (s *Store) walkLeaves(sp tree.Span, level int, seen func(*chunk.Hash) (bool, error), fn func(tree.Span) error) error {
	if seen != nil {
		if known, err := seen(&sp.Hash); known || err != nil {
			return err
		}
	}
	if level == 0 {
		return fn(sp)
	}
	spans, err := s.inner(sp, level)
	if err != nil {
		return err
	}
	for i := range spans {
		if err := s.walkLeaves(spans[i], level-1, seen, fn); err != nil {
			return err
		}
	}
	return nil
}
