package fusefs

import (
	"context"
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

func (b *storeBlock) Bytes() []byte { return b.b.Bytes() }

func (b *storeBlock) Ready(chunks []image.Chunk, hashes []image.Hash) error {
	for i := range chunks {
		b.b.Add(store.Hash(hashes[i]), chunks[i].Len)
	}
	return b.k.s.ingest.Store(b.b)
}

func (b *storeBlock) Append() error {
	k, n := b.k, int64(len(b.b.Bytes()))
	if err := k.s.ingest.Append(b.b); err != nil {
		return err
	}
	b.b = nil
	k.pool.Put(b)
	k.s.advance(n)
	return context.Cause(k.ctx)
}
