// Package ahead reads images by their chunks: those that are asked for, and, for who reads in
// order, those that will be. It knows nothing of where chunks are kept: a Source has them.
package ahead

import (
	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Source is a store as a Reader needs it. Its methods are called by several goroutines.
type Source interface {
	// Leaf returns the entries of a leaf.
	Leaf(tree.Span) ([]tree.Ref, error)
	// ReadChunk fills dst with the chunk h, checked, out of whichever copy is good. An error is
	// a *damage.ChunkError.
	ReadChunk(h *chunk.Hash, dst []byte) error
	// Find returns where a copy of a chunk stands.
	Find(h *chunk.Hash) (pack.Loc, bool, error)
	// ReadPack reads bytes of a pack.
	ReadPack(p *pack.Pack, b []byte, off int64) error
	// Decode makes the chunk h out of what stands in its place in a pack, and checks it. It may
	// use stored to decrypt in.
	Decode(l *pack.Loc, h *chunk.Hash, dst, stored []byte) error
}

// Pools are shared by all Readers of a store.
type Pools struct {
	Chunks   cache.Pool    // chunks
	Reads    cache.Pool    // pieces of packs
	Decoding chan struct{} // as many decode at once
}

// NewPools makes pools for readers of which procs decode at once.
func NewPools(procs int) *Pools {
	p := &Pools{Decoding: make(chan struct{}, procs)}
	p.Chunks.Init(64 << 10)
	p.Reads.Init(aheadBatch)
	return p
}
