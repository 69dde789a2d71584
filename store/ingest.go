package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/store/ahead"
	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// job is a chunk on its way from a block to a pack.
type job struct {
	hash    chunk.Hash
	data    []byte
	buf     *cache.Buf // that holds data
	waiters []*Ingest  // everyone who refers to it; guarded by queue.mu
}

// ingestState is how far an ingest came.
type ingestState uint8

const (
	ingestRunning ingestState = iota
	ingestDone
	ingestAborted
)

// Ingest is an image being written. Append, Put and Commit belong to one goroutine; Block, Store,
// ReadAt, Wait, Size and Abort may be called by any number of others meanwhile.
type Ingest struct {
	s       *Store
	ctx     context.Context
	free    context.CancelFunc // of ctx
	name    string
	series  string
	created time.Time
	unique  atomic.Int64
	jobs    sync.WaitGroup // chunks this image refers to that are not in a pack yet
	putting sync.RWMutex   // shared by Store and Append; Commit, Abort and GC wait until nobody has it
	extra   []chunk.Hash   // nodes and attachments, if the store is in a bucket

	packsMu sync.Mutex
	packs   map[*pack.Pack]struct{} // what the image refers to, if the store is in a bucket

	mu     sync.Mutex
	state  ingestState
	err    error         // why it failed; sticky
	grew   chan struct{} // closed when bytes, an error or the end arrive; nil if nobody waits
	tree   tree.Builder
	ahead  map[*Block]struct{} // stored, or being stored, and not appended yet
	win    cache.Window
	view   *ahead.View
	attach []side
}

// side is an attachment waiting for Commit.
type side struct {
	name string
	data []byte
}

// Begin starts a new image. The name must be a valid file name that no image has
// (fs.ErrExist) and stays reserved until Commit or Abort. When ctx ends, Store, Append and
// Commit fail; the caller must still call Abort.
func (s *Store) Begin(ctx context.Context, name string) (*Ingest, error) {
	in := &Ingest{s: s, name: name, created: time.Now(), ahead: map[*Block]struct{}{}}
	in.ctx, in.free = s.bound(ctx)
	if err := s.begin(in); err != nil {
		in.free()
		return nil, err
	}
	return in, nil
}

func (s *Store) begin(in *Ingest) error {
	in.tree.Put = in.putNode
	in.win.Limit = s.o.Window
	if s.sh != nil {
		in.packs = map[*pack.Pack]struct{}{}
		if err := s.sh.Freshen(in.ctx, fleet.Ago(packsFresh)); err != nil {
			return err
		}
	}
	in.view = ahead.NewView((*source)(s), s.pools)
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
	return in.tree.Size
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
	case off < in.tree.Size:
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
func (in *Ingest) ReadAt(p []byte, off int64) (int, error) { return in.read(nil, p, off) }

// Gather is ReadAt for who hands the bytes on and does not need them in one piece: see
// [Reader.Gather]. What the ingest has in memory is not copied.
func (in *Ingest) Gather(g *Gathered, p []byte, off int64) (int, error) {
	return in.read(g, p, off)
}

// read is ReadAt, or Gather if g is not nil.
func (in *Ingest) read(g *Gathered, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("image %q: offset %d is negative", in.name, off)
	}
	n := 0
	for n < len(p) {
		m, err := in.readSome(g, p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readSome reads from one chunk.
func (in *Ingest) readSome(g *Gathered, p []byte, off int64) (int, error) {
	in.mu.Lock()
	if err := in.at(off); err != nil {
		in.mu.Unlock()
		return 0, err
	}
	if data, b, start, ok := in.win.Find(off); ok {
		in.mu.Unlock()
		data = data[off-start:]
		n := min(len(p), len(data))
		return g.Add(p[:n], data[:n:n], b), nil
	}
	if off >= in.tree.Base {
		i, start := tree.Locate(in.tree.Open, in.tree.Base, off)
		ref := in.tree.Open[i]
		in.mu.Unlock()
		n, err := in.view.CopyChunk(p, &ref, start, off)
		return g.Own(p[:n]), blame(err, in.name)
	}
	i, base := tree.LeafAt(in.tree.Ends, off)
	sp := in.tree.Spans[i]
	in.mu.Unlock()
	n, err := in.view.ReadLeaf(p, sp, base, off)
	return g.Own(p[:n]), blame(err, in.name)
}

// unlisted returns the chunks that are in no leaf yet: those of blocks that wait for their turn,
// too. Called with mu held.
func (in *Ingest) unlisted() []tree.Ref {
	refs := slices.Clone(in.tree.Open)
	for b := range in.ahead {
		refs = append(refs, b.refs...)
	}
	return refs
}

// quiesce waits until no Store, Append or Commit is under way.
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
