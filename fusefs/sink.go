package fusefs

import (
	"context"
	"io"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
)

// storeSink brings an image into a session's ingest.
type storeSink struct {
	s    *session
	ctx  context.Context
	pool sync.Pool
}

// storeBlock is a Block of a storeSink.
type storeBlock struct {
	k *storeSink
	b *store.Block
}

func (k *storeSink) Block(n int) image.Block {
	b, _ := k.pool.Get().(*storeBlock)
	if b == nil {
		b = &storeBlock{k: k}
	}
	b.b = k.s.ingest.Block(n)
	return b
}

// Refer returns a block of chunks that the store has, as base has them, which is one that was given to
// Checkpoint.Stored.
func (k *storeSink) Refer(base io.ReaderAt, chunks []image.Chunk, hashes []image.Hash) (image.Block, error) {
	names, lengths, n := make([]store.Hash, len(chunks)), make([]int, len(chunks)), 0
	for i := range chunks {
		names[i], lengths[i] = store.Hash(hashes[i]), chunks[i].Len
		n += lengths[i]
	}
	got, err := k.s.ingest.Refer(k.s.lean(base), names, lengths)
	if got == nil || err != nil {
		return nil, err
	}
	return &referBlock{k, got, n}, nil
}

// referBlock is a Block whose bytes the store has.
type referBlock struct {
	k *storeSink
	b *store.Block
	n int
}

func (b *referBlock) Bytes() []byte { return nil }

func (b *referBlock) Ready([]image.Chunk, []image.Hash) error { return nil }

func (b *referBlock) Append() error { return b.k.append(b.b, int64(b.n)) }

// append makes a block the next one of the image.
func (k *storeSink) append(b *store.Block, n int64) error {
	if err := k.s.ingest.Append(b); err != nil {
		return err
	}
	k.s.advance(n)
	return context.Cause(k.ctx)
}

func (b *storeBlock) Bytes() []byte { return b.b.Bytes() }

func (b *storeBlock) Ready(chunks []image.Chunk, hashes []image.Hash) error {
	for i := range chunks {
		b.b.Add(store.Hash(hashes[i]), chunks[i].Len)
	}
	return b.k.s.ingest.Store(b.b)
}

func (b *storeBlock) Append() error {
	k, got, n := b.k, b.b, int64(len(b.b.Bytes()))
	b.b = nil
	k.pool.Put(b)
	if err := k.append(got, n); err != nil {
		return err
	}
	k.s.keepPace(k.ctx.Done())
	return context.Cause(k.ctx)
}
