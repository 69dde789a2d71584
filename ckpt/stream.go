package ckpt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// piece is a run of bytes of the image and where they come from.
type piece struct {
	from pageReader
	at   int64 // address or offset in from
	len  int
	what string // for errors: "pid 7", "blob 3"
}

// batch is a few neighbouring chunks on their way through Stream: one chunk alone would not be
// worth the way between two goroutines.
type batch struct {
	pieces []piece
	base   io.ReaderAt // the image before, if that has all its chunks, with these hashes; else nil
	size   int         // bytes
	chunks []image.Chunk
	block  image.Block
	hashes []image.Hash
	ready  bool // guarded by streaming.mu
}

// batchLen is how many bytes a batch has at most. Reading more at once is slower, since then
// the cache is too small.
const batchLen = 64 << 10

// aheadBatches is how many batches are read before they are wanted.
const aheadBatches = 64

// Stream gives the whole image to a sink in file order; the trailer comes last, cut like the
// rest. It reads ahead on all cores, which also hash and do what the sink's blocks do in Ready.
// Stream returns the root hash, the image's identity. It can be called once.
func (c *Checkpoint) Stream(ctx context.Context, sink image.Sink) (root image.Hash, err error) {
	step := c.op.Step("stream", int(c.m.Tasks[0].PID)).Count("bytes", c.layout.Total)
	defer func() { step.End(err) }()
	if c.streamed {
		return image.Hash{}, errors.New("the checkpoint has been streamed already")
	}
	_, refers := sink.(image.Referrer)
	at := 0
	s := &streaming{sink: sink, src: c.source(), hashes: make([]image.Hash, 0, len(c.layout.Chunks)), next: func() *batch {
		if at == len(c.layout.Chunks) {
			return nil
		}
		b := c.takeBatch(at, refers)
		at += len(b.chunks)
		return b
	}}
	if err := s.run(ctx); err != nil {
		return image.Hash{}, err
	}
	if c.o.run != nil {
		c.basis = c.newBase(s.hashes)
	}
	return c.streamTrailer(s.hashes, sink)
}

// streaming is what the goroutines of a Stream share. Each of them takes the next batch, reads and hashes it, and
// then appends all batches whose turn it is, unless another one is doing so. So whoever has work to do goes on with
// it: a goroutine of its own for appending, which is the longest work where the image goes to a file, would have to
// wait for a processor each time it comes out of write(2).
type streaming struct {
	sink image.Sink

	mu        sync.Mutex
	moved     sync.Cond // a batch was appended, or err was set
	src       *source
	next      func() *batch // the next one that nobody has taken, nil if there is none
	pending   []*batch      // taken and not appended, in order
	appending bool
	hashes    []image.Hash
	err       error
}

// run does all of it.
func (s *streaming) run(ctx context.Context) error {
	s.moved.L = &s.mu
	defer context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })()
	var workers sync.WaitGroup
	// Not one more, although GOMAXPROCS may be (store.SpareProc): as long as a processor of its own is idle, the
	// runtime does not take that of a goroutine away which is in read(2) or write(2).
	for range min(runtime.GOMAXPROCS(0), runtime.NumCPU()) {
		workers.Go(s.work)
	}
	workers.Wait() // also after an error: what they read from goes away with the checkpoint
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *streaming) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed(err)
}

// failed is fail with mu held.
func (s *streaming) failed(err error) {
	if s.err == nil {
		s.err = err
	}
	s.moved.Broadcast()
}

// work does batches until none is left.
func (s *streaming) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := s.take(); b != nil; b = s.take() {
		s.mu.Unlock()
		err := b.work(s.sink)
		s.mu.Lock()
		if err != nil {
			s.failed(err)
			return
		}
		b.ready = true
		s.append()
	}
}

// take returns the next batch, when there are not too many yet; nil at the end.
func (s *streaming) take() *batch {
	for s.err == nil && len(s.pending) >= aheadBatches {
		s.moved.Wait()
	}
	if s.err != nil {
		return nil
	}
	b := s.next()
	if b == nil {
		return nil
	}
	if b.base == nil {
		b.block = s.sink.Block(b.size)
	}
	b.pieces = s.src.next(b.size)
	s.pending = append(s.pending, b)
	return b
}

// append appends what is ready.
func (s *streaming) append() {
	if s.appending {
		return
	}
	s.appending = true
	for len(s.pending) > 0 && s.pending[0].ready && s.err == nil {
		b := s.pending[0]
		s.mu.Unlock()
		err := b.block.Append()
		s.mu.Lock()
		if err != nil {
			s.failed(err)
		}
		s.hashes = append(s.hashes, b.hashes...)
		s.pending[0] = nil
		if s.pending = s.pending[1:]; len(s.pending) == aheadBatches/2 {
			s.moved.Broadcast() // not for each: to sleep and to wake up takes as long as half a batch
		}
	}
	s.appending = false
}

func (c *Checkpoint) streamTrailer(hashes []image.Hash, sink image.Sink) (image.Hash, error) {
	if err := <-c.checked; err != nil {
		return image.Hash{}, err
	}
	trailer, root, err := c.layout.Trailer(hashes)
	if err != nil {
		return image.Hash{}, err
	}
	off := c.layout.Total - int64(len(trailer))
	for chunk := range slices.Chunk(trailer, image.ChunkSize) {
		b := batch{chunks: []image.Chunk{{Off: off, Len: len(chunk)}}, block: sink.Block(len(chunk))}
		copy(b.block.Bytes(), chunk)
		if err = b.hash(); err == nil {
			err = b.block.Append()
		}
		if err != nil {
			return image.Hash{}, err
		}
		off += int64(len(chunk))
	}
	c.streamed = true
	return root, nil
}

// referLen is how many bytes a batch has at most that nobody reads.
const referLen = 1 << 20

// takeBatch makes a batch of the chunks from number at on. refers says that the sink can refer to chunks.
func (c *Checkpoint) takeBatch(at int, refers bool) *batch {
	chunks := c.layout.Chunks[at:]
	refers = refers && c.same != nil
	b := &batch{size: chunks[0].Len}
	most := batchLen
	if refers && c.same[at] != nil {
		b.base, most = c.o.run.base.r, referLen
	}
	i := 1
	for ; i < len(chunks) && b.size+chunks[i].Len <= most; i++ {
		if refers && (b.base != nil) != (c.same[at+i] != nil) {
			break
		}
		b.size += chunks[i].Len
	}
	b.chunks = chunks[:i]
	if b.base != nil {
		b.hashes = make([]image.Hash, i)
		for j := range b.hashes {
			b.hashes[j] = c.same[at+j].hash
		}
	}
	return b
}

// work gets a batch ready: the sink refers to it, or it is read and hashed.
func (b *batch) work(sink image.Sink) error {
	if b.base != nil {
		block, err := sink.(image.Referrer).Refer(b.base, b.chunks, b.hashes)
		if err != nil {
			return err
		}
		if b.block = block; block != nil {
			return nil
		}
		b.block = sink.Block(b.size) // it has lost some of them: the bytes are still to be had
	}
	if err := b.fill(); err != nil {
		return err
	}
	return b.hash()
}

// fill reads the bytes of a batch.
func (b *batch) fill() error {
	at := b.block.Bytes()
	for _, p := range b.pieces {
		if p.len > len(at) {
			return fmt.Errorf("chunks of %d bytes got more", len(b.block.Bytes()))
		}
		if _, err := p.from.ReadAt(at[:p.len], p.at); err != nil {
			return fmt.Errorf("%s: read %d bytes at %#x: %w", p.what, p.len, p.at, err)
		}
		at = at[p.len:]
	}
	clear(at)
	return nil
}

// hash hashes every chunk and tells the block.
func (b *batch) hash() error {
	b.hashes = make([]image.Hash, len(b.chunks))
	at := b.block.Bytes()
	for i := range b.chunks {
		n := b.chunks[i].Len
		b.hashes[i], at = image.HashOf(at[:n]), at[n:]
	}
	return b.block.Ready(b.chunks, b.hashes)
}

// source walks through the image's bytes in file order: head, memory, segments, blobs.
type source struct {
	pieces []piece
	at     int // in pieces
	used   int // bytes of pieces[at] that were given out
}

// source lists where each run of bytes comes from. Blobs are padded to pages; the padding is
// a piece of zeros.
func (c *Checkpoint) source() *source {
	s := &source{}
	s.add(bytesReader(c.head), 0, len(c.head), "head")
	for i, p := range c.procs {
		vmas := c.m.MMs[i].VMAs
		for j := range vmas {
			if len(vmas[j].Extents) == 0 {
				continue
			}
			from := p.mem.reader(&p.mem.areas[j])
			for _, e := range vmas[j].Extents {
				s.add(from, int64(e.Start), int(e.Len), fmt.Sprintf("memory of pid %d", p.pid))
			}
		}
	}
	for i := range c.m.Segments {
		for _, e := range c.m.Segments[i].Extents {
			s.add(c.segs.copies[i], int64(e.Start), int(e.Len), fmt.Sprintf("segment %d", i+1))
		}
	}
	for i, b := range c.blobs {
		s.add(bytesReader(b), 0, len(b), fmt.Sprintf("blob %d", i+1))
		pad := -len(b) & int(pageSize-1)
		s.add(bytesReader(make([]byte, pad)), 0, pad, "padding")
	}
	return s
}

func (s *source) add(from pageReader, at int64, n int, what string) {
	if n > 0 {
		s.pieces = append(s.pieces, piece{from, at, n, what})
	}
}

// next returns the pieces of the next n bytes.
func (s *source) next(n int) []piece {
	var out []piece
	for n > 0 && s.at < len(s.pieces) {
		p := s.pieces[s.at]
		take := min(n, p.len-s.used)
		out = append(out, piece{p.from, p.at + int64(s.used), take, p.what})
		n -= take
		if s.used += take; s.used == p.len {
			s.at, s.used = s.at+1, 0
		}
	}
	return out
}

// bytesReader is a pageReader over bytes.
type bytesReader []byte

// ReadAt copies from off on; the caller stays inside.
func (b bytesReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) || len(p) > len(b)-int(off) {
		return 0, fmt.Errorf("%d bytes at %d of %d", len(p), off, len(b))
	}
	return copy(p, b[off:]), nil
}
