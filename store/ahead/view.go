package ahead

import (
	"errors"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/tree"
)

// View reads the chunks of one image with small caches: of leaves of its list, and of
// chunks that were read in part.
type View struct {
	src    Source
	p      *Pools
	leaves *cache.Cache[[]tree.Ref]
	chunks *cache.Cache[*cache.Buf]
}

const (
	cachedLeaves = 16
	cachedChunks = 16
)

// NewView makes a view with empty caches.
func NewView(src Source, p *Pools) *View {
	return &View{src: src, p: p, leaves: cache.New[[]tree.Ref](cachedLeaves, nil), chunks: cache.New(cachedChunks, (*cache.Buf).Release)}
}

// Close gives the buffers back.
func (v *View) Close() { v.chunks.Close() }

// leaf returns the entries of a leaf.
func (v *View) leaf(sp tree.Span) ([]tree.Ref, error) {
	e, err := v.leaves.Get(&sp.Hash, func() ([]tree.Ref, error) { return v.src.Leaf(sp) })
	if err != nil {
		return nil, err
	}
	defer v.leaves.Done(e)
	return e.Val, nil
}

// ReadLeaf copies bytes at off into p, out of one chunk of the leaf that begins at base. An error
// about a chunk says at which offset of the image it is.
func (v *View) ReadLeaf(p []byte, leaf tree.Span, base, off int64) (int, error) {
	refs, err := v.leaf(leaf)
	if err != nil {
		return 0, at(err, -1)
	}
	i, start := tree.Locate(refs, base, off)
	if i == len(refs) {
		return 0, &damage.ChunkError{Offset: -1, Hash: leaf.Hash, Err: tree.ErrNode}
	}
	return v.CopyChunk(p, &refs[i], start, off)
}

// CopyChunk copies bytes at off into p, out of the chunk that begins at start.
func (v *View) CopyChunk(p []byte, ref *tree.Ref, start, off int64) (int, error) {
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
		if err := v.src.ReadChunk(&ref.Hash, p[:n:n]); err != nil {
			return 0, at(err, start)
		}
		return n, nil
	default:
		if e, err = v.chunks.Get(&ref.Hash, func() (*cache.Buf, error) { return v.chunk(ref) }); err != nil {
			return 0, at(err, start)
		}
	}
	defer v.chunks.Done(e)
	if len(e.Val.Data) != int(ref.Size) {
		return 0, &damage.ChunkError{Offset: start, Hash: ref.Hash, Err: codec.ErrMismatch}
	}
	return copy(p[:n], e.Val.Data[skip:]), nil
}

// chunk returns a whole chunk in a buffer of its own.
func (v *View) chunk(ref *tree.Ref) (*cache.Buf, error) {
	b := v.p.Chunks.Get(int(ref.Size))
	if err := v.src.ReadChunk(&ref.Hash, b.Data); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// at says in a ChunkError at which offset of the image the chunk is. The error may be shared, so
// it is a copy.
func at(err error, off int64) error {
	var ce *damage.ChunkError
	if !errors.As(err, &ce) {
		return err
	}
	out := *ce
	out.Offset = off
	return &out
}
