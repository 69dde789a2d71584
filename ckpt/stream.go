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
	err    error
	done   chan struct{}
}

// batchLen is how many bytes a batch has at most. Reading more at once is slower, since then
// the cache is too small.
const batchLen = 64 << 10

// Stream gives the whole image to a sink in file order; the trailer comes last, cut like the
// rest. It reads ahead on all cores, which also hash and do what the sink's blocks do in Ready.
// Stream returns the root hash, the image's identity. It can be called once.
func (c *Checkpoint) Stream(ctx context.Context, sink image.Sink) (root image.Hash, err error) {
	step := c.op.Step("stream", int(c.m.Tasks[0].PID)).Count("bytes", c.layout.Total)
	defer func() { step.End(err) }()
	if c.streamed {
		return image.Hash{}, errors.New("the checkpoint has been streamed already")
	}
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait() // what they read from goes away with the checkpoint
	defer cancel()
	hashes := make([]image.Hash, 0, len(c.layout.Chunks))
	for b := range c.readAhead(ctx, sink, &reading) {
		select {
		case <-b.done:
		case <-ctx.Done():
			return image.Hash{}, ctx.Err()
		}
		if b.err != nil {
			return image.Hash{}, b.err
		}
		hashes = append(hashes, b.hashes...)
		if err := b.block.Append(); err != nil {
			return image.Hash{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return image.Hash{}, err
	}
	if c.o.run != nil {
		c.basis = c.newBase(hashes)
	}
	return c.streamTrailer(hashes, sink)
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
		if err = b.ready(); err == nil {
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

// aheadBatches is how many batches are read before they are wanted.
const aheadBatches = 64

// readAhead returns the chunks in order. Each batch is filled by one of the workers; whoever
// takes it waits for its done. Cancelling ctx ends everything.
func (c *Checkpoint) readAhead(ctx context.Context, sink image.Sink, reading *sync.WaitGroup) <-chan *batch {
	ordered := make(chan *batch, aheadBatches)
	work := make(chan *batch, aheadBatches)
	for range runtime.GOMAXPROCS(0) {
		reading.Go(func() {
			for b := range work {
				b.err = ctx.Err()
				if b.err == nil {
					b.err = b.work(sink)
				}
				close(b.done)
			}
		})
	}
	reading.Go(func() {
		defer close(ordered)
		defer close(work)
		src := c.source()
		_, refers := sink.(image.Referrer)
		for at := 0; at < len(c.layout.Chunks); {
			b := c.takeBatch(at, refers)
			at += len(b.chunks)
			if b.base == nil {
				b.block = sink.Block(b.size)
			}
			b.pieces = src.next(b.size)
			select {
			case work <- b:
			case <-ctx.Done():
				return
			}
			select {
			case ordered <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	return ordered
}

// referLen is how many bytes a batch has at most that nobody reads.
const referLen = 1 << 20

// takeBatch makes a batch of the chunks from number at on. refers says that the sink can refer to chunks.
func (c *Checkpoint) takeBatch(at int, refers bool) *batch {
	chunks := c.layout.Chunks[at:]
	refers = refers && c.same != nil
	b := &batch{done: make(chan struct{}), size: chunks[0].Len}
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
	return b.ready()
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

// ready hashes every chunk and tells the block.
func (b *batch) ready() error {
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
