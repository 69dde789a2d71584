package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// maxAttached bounds the attachments of one image together, in bytes: they stay in memory
// until Commit.
const maxAttached = 64 << 20

// job is a chunk on its way from Put to a pack.
type job struct {
	hash    Hash
	buf     *buf
	owner   *Ingest
	node    bool
	waiters []*Ingest // everyone who refers to it, the owner too; guarded by index.mu
}

// ingestState is how far an ingest came.
type ingestState uint8

const (
	ingestRunning ingestState = iota
	ingestDone
	ingestAborted
)

// Ingest is an image being written. Put and Commit belong to one goroutine; ReadAt, Wait,
// Size and Abort may be called by any number of others meanwhile.
type Ingest struct {
	s       *Store
	ctx     context.Context
	free    context.CancelFunc // of ctx
	name    string
	series  string
	created time.Time
	unique  atomic.Int64
	jobs    sync.WaitGroup // chunks this image refers to that are not in a pack yet
	putting sync.Mutex     // held by Put and Commit; Abort and Close wait for it
	extra   []Hash         // nodes and attachments, if the store is in a bucket

	packsMu sync.Mutex
	packs   map[*pack]struct{} // what the image refers to, if the store is in a bucket

	mu     sync.Mutex
	state  ingestState
	err    error         // why it failed; sticky
	grew   chan struct{} // closed when bytes, an error or the end arrive; nil if nobody waits
	tree   treeBuilder
	win    window
	view   view
	attach []side
}

// side is an attachment waiting for Commit.
type side struct {
	name string
	data []byte
}

// Begin starts a new image. The name must be a valid file name that no image has
// (fs.ErrExist) and stays reserved until Commit or Abort. When ctx ends, Put and Commit
// fail; the caller must still call Abort.
func (s *Store) Begin(ctx context.Context, name string) (*Ingest, error) {
	in := &Ingest{s: s, name: name, created: time.Now()}
	in.ctx, in.free = s.bound(ctx)
	if err := s.begin(in); err != nil {
		in.free()
		return nil, err
	}
	return in, nil
}

func (s *Store) begin(in *Ingest) error {
	in.tree.put = in.putNode
	in.win.limit = s.o.Window
	if s.sh != nil {
		in.packs = map[*pack]struct{}{}
		if err := s.sh.freshen(in.ctx, ago(packsFresh)); err != nil {
			return err
		}
	}
	in.view = newView(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.free(in.name); err != nil {
		return err
	}
	if len(s.running) == 0 {
		s.session = session{}
	}
	s.running[in] = struct{}{}
	return nil
}

// Name returns the name the image will have.
func (in *Ingest) Name() string { return in.name }

// Put appends a chunk of 1 to MaxChunk bytes to the image. h is its BLAKE3-256. The chunk
// may be reused when Put returns; it is compressed and written later, by others. After an
// error, which is also the error of every later call, only Abort is left to do.
func (in *Ingest) Put(h Hash, chunk []byte) error {
	in.putting.Lock()
	defer in.putting.Unlock()
	if err := in.usable(); err != nil {
		return err
	}
	if err := in.s.checkChunk(&h, chunk); err != nil {
		return in.fail(err)
	}
	h = in.s.sec.id(h)
	ref := chunkRef{hash: h, size: uint32(len(chunk)), zero: allZero(chunk)}
	var b *buf
	if !ref.zero {
		b = in.s.bufs.get(len(chunk))
		copy(b.data, chunk)
		if err := in.store(&h, b, false); err != nil {
			b.release()
			return in.fail(err)
		}
	}
	return in.appendRef(ref, b)
}

func (s *Store) checkChunk(h *Hash, chunk []byte) error {
	if len(chunk) == 0 || len(chunk) > MaxChunk {
		return fmt.Errorf("a chunk of %d bytes: it must have 1 to %d", len(chunk), MaxChunk)
	}
	if s.o.CheckHashes && hashOf(chunk) != *h {
		return fmt.Errorf("chunk of %d bytes: %w (%s)", len(chunk), errMismatch, *h) // a copy: h itself would have to be allocated for every Put
	}
	return nil
}

// appendRef adds a chunk to the list and its bytes to the window, which takes b over.
func (in *Ingest) appendRef(ref chunkRef, b *buf) error {
	in.mu.Lock()
	off := in.tree.size
	in.tree.open = append(in.tree.open, ref)
	in.tree.size += int64(ref.size)
	in.tree.count++
	if b != nil {
		in.win.push(off, b)
	}
	full := endsNode(&ref.hash, len(in.tree.open))
	in.wake()
	in.mu.Unlock()
	if !full {
		return nil
	}
	return in.fail(in.tree.closeLeaf(&in.mu))
}

// store sees to it that a chunk is in a pack some time, unless it is already. It holds b
// itself for as long as it needs it.
func (in *Ingest) store(h *Hash, b *buf, node bool) error {
	known, err := in.s.known(h, in)
	if known || err != nil {
		return err
	}
	j := in.s.jobs.Get().(*job)
	j.hash, j.buf, j.owner, j.node = *h, b.hold(), in, node
	j.waiters = append(j.waiters[:0], in)
	in.jobs.Add(1)
	if taken, p := in.s.ix.enqueue(h, j, in); !taken {
		if in.packs != nil && p != nil {
			in.refer(p)
		}
		in.jobs.Done()
		in.s.recycle(j)
		return nil
	}
	in.s.queue <- j
	return nil
}

// known reports whether a chunk is stored or about to be.
func (s *Store) known(h *Hash, in *Ingest) (bool, error) {
	s.ix.mu.Lock()
	joined := s.ix.join(h, in)
	s.ix.mu.Unlock()
	if joined {
		return true, nil
	}
	p, err := s.ix.reuse(h)
	if errors.Is(err, errRun) && s.healIndex(err) {
		p, err = s.ix.reuse(h)
	}
	if p != nil && in.packs != nil {
		in.refer(p)
	}
	return p != nil, err
}

// putNode stores a node of the chunk list.
func (in *Ingest) putNode(node []byte) (Hash, error) { return in.putBytes(node, true) }

// putBytes stores what is no chunk of the image: a node or a piece of an attachment.
func (in *Ingest) putBytes(data []byte, node bool) (Hash, error) {
	h := in.s.sec.idOf(data)
	if in.packs != nil {
		in.extra = append(in.extra, h)
	}
	b := in.s.bufs.get(len(data))
	copy(b.data, data)
	defer b.release()
	return h, in.store(&h, b, node)
}

// usable reports why an ingest takes nothing more, if so.
func (in *Ingest) usable() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.err != nil:
		return in.err
	case in.state != ingestRunning:
		return fmt.Errorf("image %q: %w", in.name, ErrClosed)
	}
	if err := context.Cause(in.ctx); err != nil {
		return fmt.Errorf("image %q: %w", in.name, err)
	}
	return nil
}

// fail makes err, if it is one, the ingest's fate and returns the one it has.
func (in *Ingest) fail(err error) error {
	if err == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil && in.state != ingestDone {
		in.err = fmt.Errorf("writing image %q: %w", in.name, err)
		in.wake()
	}
	return in.err
}

// wake tells whoever waits for more bytes. Called with mu held.
func (in *Ingest) wake() {
	if in.grew != nil {
		close(in.grew)
		in.grew = nil
	}
}

// Size returns how many bytes were Put so far.
func (in *Ingest) Size() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.tree.size
}

// Wait waits until the byte at off was Put. It returns io.EOF when the image was committed
// and ends before it, the ingest's error when it failed, and ctx's when ctx ends first.
func (in *Ingest) Wait(ctx context.Context, off int64) error {
	for {
		in.mu.Lock()
		err := in.at(off)
		if !errors.Is(err, ErrNotYet) {
			in.mu.Unlock()
			return err
		}
		if in.grew == nil {
			in.grew = make(chan struct{})
		}
		grew := in.grew
		in.mu.Unlock()
		select {
		case <-grew:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// at reports whether the byte at off can be read. Called with mu held.
func (in *Ingest) at(off int64) error {
	switch {
	case in.err != nil:
		return in.err
	case off < in.tree.size:
		return nil
	case in.state == ingestDone:
		return io.EOF
	}
	return ErrNotYet
}

// ReadAt reads bytes that were Put, also while others are still being Put: the newest from
// memory, older ones from their pack. Where p reaches beyond them the error is ErrNotYet,
// after Commit io.EOF. Between Commit and the end of a slow reader another may Remove the
// image and GC its chunks; who reads on after Commit should do so with OpenImage.
func (in *Ingest) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("image %q: offset %d is negative", in.name, off)
	}
	n := 0
	for n < len(p) {
		m, err := in.readSome(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readSome reads from one chunk.
func (in *Ingest) readSome(p []byte, off int64) (int, error) {
	in.mu.Lock()
	if err := in.at(off); err != nil {
		in.mu.Unlock()
		return 0, err
	}
	if b, start, ok := in.win.find(off); ok {
		in.mu.Unlock()
		defer b.release()
		return copy(p, b.data[off-start:]), nil
	}
	if off >= in.tree.base {
		i, start := locate(in.tree.open, in.tree.base, off)
		ref := in.tree.open[i]
		in.mu.Unlock()
		return in.view.copyChunk(in.name, p, &ref, start, off)
	}
	i, base := leafAt(in.tree.ends, off)
	sp := in.tree.spans[i]
	in.mu.Unlock()
	return in.view.readLeaf(in.name, p, sp, base, off)
}

// quiesce waits until no Put or Commit is under way.
func (in *Ingest) quiesce() {
	in.putting.Lock()
	defer in.putting.Unlock()
}

// Attach puts a small file beside the image, in place of one of the same name. All of
// them together may hold 64 MiB. What is wrong with a name or size, Commit says.
func (in *Ingest) Attach(name string, data []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	d := side{name: name, data: append([]byte(nil), data...)}
	for i := range in.attach {
		if in.attach[i].name == name {
			in.attach[i] = d
			return
		}
	}
	in.attach = append(in.attach, d)
}
