package store

import (
	"sync"

	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/klauspost/compress/zstd"
)

// What is written at once: writing is dear for so small pieces as chunks.
const (
	batchJobs  = 64
	batchBytes = 256 << 10 // encoded; one more chunk may be begun
	batchRaw   = 512 << 10 // before that: so much memory waits with them
)

// batch is a number of encoded chunks on their way to a pack.
type batch struct {
	node    bool
	jobs    []*job
	raw     int // bytes of their chunks
	entries []pack.Entry
	plain   []byte // one after the other
	sealed  []byte // where they are encrypted
}

func (b *batch) full() bool {
	return len(b.jobs) >= batchJobs || len(b.plain) >= batchBytes || b.raw >= batchRaw
}

// encoder is a compressor with what it made last.
type encoder struct {
	*codec.Compressor
	fast    codec.FastCompressor
	batches [2]*batch // of chunks and of nodes
}

// encoders lends compressors to those who store blocks, and writes what they made: one
// goroutine does, since several would only wait for each other at the file. Batches that are
// not full wait with their compressor for more chunks, unless somebody waits for them.
type encoders struct {
	s       *Store
	queue   chan *batch
	done    chan struct{}
	batches sync.Pool

	mu     sync.Mutex
	idle   []*encoder
	urgent int // how many wait for chunks to be written
}

// batchQueue is how many batches wait for the disk, at most.
const batchQueue = 2

func (x *encoders) start(s *Store) {
	x.s, x.queue, x.done = s, make(chan *batch, batchQueue), make(chan struct{})
	x.batches.New = func() any { return &batch{plain: make([]byte, 0, batchBytes+batchBytes/2)} }
	go func() {
		defer close(x.done)
		for b := range x.queue {
			x.write(b)
		}
	}()
}

// stop ends the goroutine. Nobody may store anything meanwhile or later.
func (x *encoders) stop() {
	close(x.queue)
	<-x.done
}

// take lends a compressor.
func (x *encoders) take() (*encoder, error) {
	x.mu.Lock()
	if n := len(x.idle); n > 0 {
		c := x.idle[n-1]
		x.idle = x.idle[:n-1]
		x.mu.Unlock()
		return c, nil
	}
	x.mu.Unlock()
	c, err := codec.NewCompressor(zstd.SpeedFastest)
	return &encoder{Compressor: c}, err
}

// give takes a compressor back.
func (x *encoders) give(c *encoder) {
	x.mu.Lock()
	for x.urgent > 0 && c.pending() {
		x.mu.Unlock()
		x.send(c)
		x.mu.Lock()
	}
	x.idle = append(x.idle, c)
	x.mu.Unlock()
}

// hurry has everything written that waits for more, and goes on doing so until calm.
func (x *encoders) hurry() {
	x.mu.Lock()
	x.urgent++
	list := x.idle
	x.idle = nil
	x.mu.Unlock()
	for _, c := range list {
		x.send(c)
		x.give(c)
	}
}

func (x *encoders) calm() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.urgent--
}

// pending reports whether chunks wait for more.
func (c *encoder) pending() bool { return c.batches[0] != nil || c.batches[1] != nil }

// send has what a compressor made written.
func (x *encoders) send(c *encoder) {
	for i, b := range c.batches {
		if b != nil {
			c.batches[i] = nil
			x.queue <- b
		}
	}
}

// encode compresses a chunk and returns how many bytes it takes. Once it is in a pack, or
// cannot be, all who wait for it are told.
func (x *encoders) encode(c *encoder, j *job, node bool) int {
	slot := &c.batches[0]
	if node {
		slot = &c.batches[1]
	}
	b := *slot
	if b == nil {
		b = x.batches.Get().(*batch)
		b.node = node
		*slot = b
	}
	n := len(b.plain)
	var how uint8
	if x.s.fast() && !node {
		b.plain, how = c.fast.Append(b.plain, j.data)
	} else {
		b.plain, how = c.Append(b.plain, j.data)
	}
	n = len(b.plain) - n
	b.jobs, b.raw = append(b.jobs, j), b.raw+len(j.data)
	b.entries = append(b.entries, pack.Entry{Hash: j.hash, Raw: uint32(len(j.data)), Stored: uint32(n), Codec: how})
	if b.full() {
		*slot = nil
		x.queue <- b
	}
	return n
}

// write appends a batch to a pack.
func (x *encoders) write(b *batch) {
	var p *pack.Pack
	var err error
	p, b.sealed, err = x.s.w.Of(b.node).AppendAll(b.entries, b.plain, b.sealed)
	x.s.queue.remove(b.jobs)
	for _, j := range b.jobs {
		x.s.finish(j, p, err)
	}
	clear(b.jobs)
	b.jobs, b.raw, b.entries, b.plain = b.jobs[:0], 0, b.entries[:0], b.plain[:0]
	x.batches.Put(b)
}

// finish tells everyone who refers to a chunk that it is in a pack, or will never be.
func (s *Store) finish(j *job, p *pack.Pack, err error) {
	for _, in := range j.waiters {
		if in.packs != nil && p != nil {
			in.refer(p)
		}
		in.fail(err)
		in.jobs.Done()
	}
	s.recycle(j)
}

func (s *Store) recycle(j *job) {
	j.buf.Release()
	clear(j.waiters)
	*j = job{waiters: j.waiters[:0]}
	s.jobs.Put(j)
}
