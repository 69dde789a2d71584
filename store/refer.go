package store

import (
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Refer returns a block of chunks that the store has, by their BLAKE3-256 and lengths: it is stored, and
// waits for Append. Nobody reads, hashes or compresses their bytes. It returns nil if one of them is not
// there (any more). It may be called by any number of goroutines.
//
// base is an image of this store that has all of them and stays open until Commit or Abort: then they need not be
// looked up, which takes more time than all else, as no GC removes what an open image needs. It may be nil.
func (in *Ingest) Refer(base *Reader, hashes []Hash, lengths []int) (*Block, error) {
	in.putting.RLock()
	defer in.putting.RUnlock()
	if err := in.usable(); err != nil {
		return nil, err
	}
	b := in.s.blocks.Get().(*Block)
	for i := range hashes {
		b.refs = append(b.refs, tree.Ref{Hash: in.s.sec.ID(hashes[i]), Size: uint32(lengths[i]), Zero: hashes[i] == hashOfZeros(lengths[i])})
		b.end += lengths[i]
	}
	in.mu.Lock()
	in.ahead[b] = struct{}{}
	in.mu.Unlock()
	if in.vouches(base) {
		b.stored = true
		return b, nil
	}
	for i := range b.refs {
		if b.refs[i].Zero {
			continue
		}
		known, err := in.s.known(&b.refs[i].Hash, in)
		if !known || err != nil {
			in.forget(b)
			return nil, in.fail(err)
		}
	}
	b.stored = true
	return b, nil
}

// vouches reports whether what an open image refers to is there for certain. In a bucket other machines have to be told which packs
// are referred to, and damaged chunks are stored anew.
func (in *Ingest) vouches(base *Reader) bool {
	return base != nil && base.s == in.s && !base.closed.Load() && in.packs == nil && !in.s.ix.AnyBad()
}

// forget drops a block that will not be appended.
func (in *Ingest) forget(b *Block) {
	in.mu.Lock()
	delete(in.ahead, b)
	in.mu.Unlock()
	in.s.recycleBlock(b)
}

// recycleBlock makes an empty block of it.
func (s *Store) recycleBlock(b *Block) {
	if b.buf != nil {
		b.buf.Release()
	}
	*b = Block{refs: b.refs[:0]}
	s.blocks.Put(b)
}

// zeros holds the hashes of chunks of zeros, by their lengths.
var zeros sync.Map

func hashOfZeros(n int) Hash {
	if h, ok := zeros.Load(n); ok {
		return h.(Hash)
	}
	h := chunk.Sum(make([]byte, n))
	zeros.Store(n, h)
	return h
}
