package store

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Block is memory for some neighbouring chunks of an image. Whoever makes an image fills it,
// tells with Add where its chunks end, has it stored, which any number of goroutines can do for
// blocks of their own, and appends it when its turn comes:
//
//	b := in.Block(n)
//	read(b.Bytes())
//	b.Add(hash, length) // for each chunk
//	err := in.Store(b)
//	...
//	err = in.Append(b)
//
// What a block holds is not copied any more: it serves readers that follow the ingest until
// newer blocks take its place.
type Block struct {
	buf  *cache.Buf
	refs []tree.Ref // of Add; Store makes them those of the chunk list
	end  int        // of the last chunk
	// stored: Store has returned, without an error.
	stored bool
}

// Block returns a block of n bytes, which are not zeroed. 64 KiB are a good size: less costs more
// calls, and much more does not stay in the processor's cache between hashing and compression.
func (in *Ingest) Block(n int) *Block {
	b := in.s.blocks.Get().(*Block)
	b.buf = in.s.pools.Chunks.Get(n)
	return b
}

// Wrap returns a block over memory that is filled already, a mapped file for example. It must
// not change, nor go away, until Commit or Abort has returned and no ReadAt is under way.
func (in *Ingest) Wrap(data []byte) *Block {
	b := in.s.blocks.Get().(*Block)
	b.buf = cache.Wrap(data)
	return b
}

// Bytes returns the memory of the block. It may be changed until Store.
func (b *Block) Bytes() []byte { return b.buf.Data }

// Add tells that the next n bytes, 1 to MaxChunk, are a chunk whose BLAKE3-256 is h.
func (b *Block) Add(h Hash, n int) {
	b.refs = append(b.refs, tree.Ref{Hash: h, Size: uint32(n)})
	b.end += n
}

// Store sees to it that the chunks of a block are in a pack some time, unless they are already:
// it compresses what is new. It may be called by any number of goroutines, and takes the time
// of one of them. After an error, which is also the error of every later call, only Abort is
// left to do.
func (in *Ingest) Store(b *Block) error {
	in.putting.RLock()
	defer in.putting.RUnlock()
	if err := in.usable(); err != nil {
		return err
	}
	return in.fail(in.storeBlock(b))
}

// storeBlock is Store with putting held.
func (in *Ingest) storeBlock(b *Block) error {
	if b.stored {
		return errStored // its chunks have the names of the store already
	}
	if b.end != len(b.buf.Data) {
		return fmt.Errorf("a block of %d bytes with chunks of %d", len(b.buf.Data), b.end)
	}
	at := 0
	for i := range b.refs {
		ref := &b.refs[i]
		data := b.buf.Data[at:][:ref.Size]
		if err := in.s.checkChunk(&ref.Hash, data); err != nil {
			return err
		}
		ref.Hash, ref.Zero = in.s.sec.ID(ref.Hash), chunk.AllZero(data)
		at += len(data)
	}
	in.mu.Lock()
	in.ahead[b] = struct{}{}
	in.mu.Unlock()
	c, err := in.s.enc.take()
	if err != nil {
		return err
	}
	defer in.s.enc.give(c)
	at = 0
	for i := range b.refs {
		ref := &b.refs[i]
		data := b.buf.Data[at:][:ref.Size]
		at += len(data)
		if ref.Zero {
			continue
		}
		if err := in.storeChunk(c, &ref.Hash, data, b.buf, false); err != nil {
			return err
		}
	}
	b.stored = true
	return nil
}

var (
	errStored    = errors.New("a block is stored only once")
	errNotStored = errors.New("a block must be stored before it is appended")
)

// Append makes a stored block the next bytes of the image, and takes it over. It belongs to one
// goroutine, as Put and Commit do.
func (in *Ingest) Append(b *Block) error {
	in.putting.RLock()
	defer in.putting.RUnlock()
	if err := in.usable(); err != nil {
		return err
	}
	return in.appendBlock(b)
}

func (in *Ingest) appendBlock(b *Block) error {
	if !b.stored {
		return in.fail(errNotStored)
	}
	at := 0
	for i := range b.refs {
		ref := &b.refs[i]
		var data []byte // nil: the store has it, see Refer
		if b.buf != nil {
			data = b.buf.Data[at:][:ref.Size]
		}
		if err := in.appendRef(*ref, data, b.buf); err != nil {
			return err
		}
		at += int(ref.Size)
	}
	in.mu.Lock()
	delete(in.ahead, b)
	in.wake()
	in.mu.Unlock()
	in.s.recycleBlock(b)
	return nil
}

// Put appends a chunk of 1 to MaxChunk bytes to the image. h is its BLAKE3-256. The chunk
// may be reused when Put returns. It is for who has no use for several cores; see Block.
func (in *Ingest) Put(h Hash, data []byte) error {
	in.putting.RLock()
	defer in.putting.RUnlock()
	if err := in.usable(); err != nil {
		return err
	}
	b := in.Block(len(data))
	copy(b.buf.Data, data)
	b.Add(h, len(data))
	if err := in.storeBlock(b); err != nil {
		return in.fail(err)
	}
	return in.appendBlock(b)
}

func (s *Store) checkChunk(h *chunk.Hash, data []byte) error {
	if len(data) == 0 || len(data) > chunk.MaxLen {
		return fmt.Errorf("a chunk of %d bytes: it must have 1 to %d", len(data), chunk.MaxLen)
	}
	if s.o.CheckHashes && chunk.Sum(data) != *h {
		return fmt.Errorf("chunk of %d bytes: %w (%s)", len(data), codec.ErrMismatch, *h) // a copy: h itself would have to be allocated for every chunk
	}
	return nil
}

// appendRef adds a chunk to the list and its bytes, which are in b if there is one, to the window.
func (in *Ingest) appendRef(ref tree.Ref, data []byte, b *cache.Buf) error {
	in.mu.Lock()
	off := in.tree.Size
	full := in.tree.Add(ref)
	if !ref.Zero && b != nil {
		in.win.Push(off, data, b)
	}
	in.mu.Unlock()
	if !full {
		return nil
	}
	return in.fail(in.tree.CloseLeaf(&in.mu))
}

// storeChunk sees to it that a chunk is in a pack some time, unless it is already. What it keeps
// of the bytes it holds b for; c compresses.
func (in *Ingest) storeChunk(c *encoder, h *chunk.Hash, data []byte, b *cache.Buf, node bool) error {
	known, err := in.s.known(h, in)
	if known || err != nil {
		return err
	}
	j := in.s.jobs.Get().(*job)
	j.hash, j.data, j.buf = *h, data, b.Hold()
	j.waiters = append(j.waiters[:0], in)
	in.jobs.Add(1)
	if taken, p := in.s.queue.enqueue(in.s.ix, h, j, in); !taken {
		if in.packs != nil && p != nil {
			in.refer(p)
		}
		in.jobs.Done()
		in.s.recycle(j)
		return nil
	}
	in.unique.Add(int64(in.s.enc.encode(c, j, node)))
	return nil
}

// known reports whether a chunk is stored.
func (s *Store) known(h *chunk.Hash, in *Ingest) (bool, error) {
	p, err := s.ix.Reuse(h)
	if errors.Is(err, index.ErrRun) && s.healIndex(err) {
		p, err = s.ix.Reuse(h)
	}
	if p != nil && in.packs != nil {
		in.refer(p)
	}
	return p != nil, err
}

// putNode stores a node of the chunk list.
func (in *Ingest) putNode(node []byte) (chunk.Hash, error) { return in.putBytes(node, true) }

// putBytes stores what is no chunk of the image: a node or a piece of an attachment.
func (in *Ingest) putBytes(data []byte, node bool) (chunk.Hash, error) {
	h := in.s.sec.IDOf(data)
	if in.packs != nil {
		in.extra = append(in.extra, h)
	}
	b := in.s.pools.Chunks.Get(len(data))
	copy(b.Data, data)
	defer b.Release()
	return h, in.storeOne(&h, b, node)
}

// storeOne is storeChunk for a chunk alone.
func (in *Ingest) storeOne(h *chunk.Hash, b *cache.Buf, node bool) error {
	c, err := in.s.enc.take()
	if err != nil {
		return err
	}
	defer in.s.enc.give(c)
	return in.storeChunk(c, h, b.Data, b, node)
}
