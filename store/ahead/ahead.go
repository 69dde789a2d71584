package ahead

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Reader reads an image, and ahead of those who read it in order:
//
//  1. Every read is noted. One that goes on where others ended, or nearly so, belongs to the
//     same stream as they; reads that come in the wrong order do too, as they do when the
//     kernel sends several at once. A stream is read ahead from its second read on.
//  2. The chunks of its window become pieces, in order. The window grows as it is read, as
//     far as the time that reads of packs take makes it worth while (far more costs the
//     processor's caches), and all windows together stay within a bound.
//  3. Goroutines that end when there is nothing left to do take batches of pieces, the
//     earliest first, and fetch them. As many wait for packs at once as keep GOMAXPROCS
//     decoders busy.
//  4. A read takes what is there and waits for what is on its way. What nobody fetches yet, or
//     could not be fetched, it reads itself as if there were no read-ahead: so only that
//     way ever says what is wrong with a chunk, and only to who asks for it.
type Reader struct {
	src  Source
	p    *Pools
	view *View
	list List
	max  int64 // bytes in pieces
	run  func()

	stopped atomic.Bool // set with mu held
	running sync.WaitGroup

	mu      sync.Mutex
	ready   sync.Cond // a piece that somebody waits for arrived
	streams [aheadStreams]stream
	tick    uint64
	held    int64 // bytes in pieces
	fetches int   // goroutines
	spent   spent
	free    []*piece
	spare   []*fetching
}

// spent is what the last fetches took, the newest counting most.
type spent struct{ reading, decoding time.Duration }

// parallel is how many fetches keep procs decoders busy.
func (t spent) parallel(procs int) int {
	n := int64(procs)
	if t.decoding > 0 {
		n += int64(t.reading) * n / int64(t.decoding)
	}
	return int(min(n, max(aheadFetches, int64(procs))))
}

// List is the list of the leaves of an image.
type List struct {
	Spans []tree.Span
	Ends  []int64 // offset where each of them ends
	Size  int64   // bytes
}

// stream is a place where an image is being read in order.
type stream struct {
	pos    int64    // end of what was read
	next   int64    // end of what was made pieces of
	window int64    // bytes beyond pos that are read ahead; 0: nothing yet
	grow   int64    // the window grows when pos gets here
	used   uint64   // tick of the last read; 0: free
	pieces []*piece // in order of their offset, from head on; nil: used up
	head   int
	todo   int  // first one that nobody fetches yet
	blind  bool // the leaf at next has to be read first
}

// piece is a chunk that is read ahead.
type piece struct {
	off     int64
	ref     tree.Ref
	left    int        // bytes that were not read yet
	buf     *cache.Buf // when ready; nil for zeros
	state   pieceState
	wanted  bool // somebody waits
	dropped bool // nobody wants it any more, but it is being fetched
}

type pieceState uint8

const (
	pieceWaits pieceState = iota
	pieceFetched
	pieceReady
	pieceFailed
)

const (
	aheadStreams = 4
	aheadFetches = 8       // batches on their way at once, at most
	aheadStart   = 1 << 20 // window of a new stream, bytes
	aheadBatch   = 1 << 20 // bytes that are fetched at once, at most
	aheadStep    = 1 << 18 // bytes of a longer read that are noted at once
	aheadBehind  = 1 << 20 // what was jumped over is kept for as long, bytes
	aheadIdle    = 64      // reads of others after which a stream is taken for dead
)

// New makes a Reader of an image whose chunks src has. Up to limit bytes are read ahead; less than
// 0 means none. The image is empty until SetList.
func New(src Source, p *Pools, limit int64) *Reader {
	a := &Reader{src: src, p: p, view: NewView(src, p), max: limit}
	a.ready.L = &a.mu
	a.run = a.work
	return a
}

// SetList says what the image consists of. It is called before the first Read.
func (a *Reader) SetList(list List) { a.list = list }

// Read fills p with the bytes at off, or adds them to g if that is not nil: then p is for what
// was not read ahead. It returns io.EOF at the end.
func (a *Reader) Read(g *cache.Gathered, p []byte, off int64) (int, error) {
	n, noted := 0, 0
	for n < len(p) {
		at := off + int64(n)
		if at >= a.list.Size {
			return n, io.EOF
		}
		if n >= noted {
			noted = n + int(a.note(at, min(int64(len(p)-n), a.list.Size-at, aheadBatch)))
		}
		if data, b, m := a.take(len(p)-n, at); m > 0 {
			n += g.Add(p[n:n+m], data, b)
			continue
		}
		i, base := tree.LeafAt(a.list.Ends, at)
		m, err := a.view.ReadLeaf(p[n:], a.list.Spans[i], base, at)
		if err != nil {
			return n, err
		}
		n += g.Own(p[n : n+m])
	}
	return n, nil
}

// note enters that n bytes at off are about to be read, and returns how many of them it has
// entered: the window follows a long read step by step.
func (a *Reader) note(off, n int64) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped.Load() || a.max <= 0 {
		return n
	}
	a.tick++
	s := a.streamOf(off, n)
	if s == nil {
		return n
	}
	s.used = a.tick
	if s.window > 0 {
		n = min(n, aheadStep)
	}
	if end := off + n; end > s.pos {
		a.advance(s, off, end)
	}
	a.plan(s)
	a.start()
	return n
}

// streamOf returns the stream that a read belongs to, if need be a new one; nil if all are
// busy.
func (a *Reader) streamOf(off, n int64) *stream {
	var oldest *stream
	for i := range a.streams {
		s := &a.streams[i]
		if s.used > 0 && off <= s.pos+2*n && off+n > s.pos-aheadBehind {
			return s
		}
		if oldest == nil || s.worth() < oldest.worth() {
			oldest = s
		}
	}
	if oldest.window > 0 && a.tick-oldest.used < aheadIdle {
		return nil
	}
	a.reset(oldest)
	oldest.next, oldest.pos = off, off+n
	return oldest
}

// worth orders streams by how much they deserve to stay.
func (s *stream) worth() uint64 {
	if s.window == 0 {
		return s.used
	}
	return s.used + 1<<62
}

// advance moves a stream to where a read of it ends.
func (a *Reader) advance(s *stream, off, end int64) {
	s.pos = end
	s.next = max(s.next, off)
	if s.window == 0 {
		s.window, s.grow = aheadStart, end+aheadStart
	} else if end >= s.grow {
		s.window *= 2
		s.grow = end + s.window
	}
	live := int64(0)
	for i := range a.streams {
		if a.streams[i].window > 0 && a.tick-a.streams[i].used < aheadIdle {
			live++
		}
	}
	s.window = min(s.window, a.max/max(live, 1), int64(a.parallel())*aheadBatch)
}

func (a *Reader) parallel() int { return a.spent.parallel(cap(a.p.Decoding)) }

// batch is how many bytes of a stream are fetched at once.
func (s *stream) batch() int64 { return min(max(s.window/8, 1), aheadBatch) }

// plan makes pieces of the window, a whole batch at least.
func (a *Reader) plan(s *stream) {
	a.trim(s)
	limit := min(s.pos+s.window, a.list.Size)
	if s.window == 0 || s.blind || s.next+s.batch() > limit && limit < a.list.Size {
		return
	}
	for s.next < limit {
		if a.held >= a.max && !a.dropIdle() {
			return
		}
		i, base := tree.LeafAt(a.list.Ends, s.next)
		refs, ok := a.view.leaves.Now(&a.list.Spans[i].Hash)
		if !ok {
			s.blind = true
			return
		}
		k, start := tree.Locate(refs, base, s.next)
		if k == len(refs) {
			s.next = a.list.Ends[i] // the reader will be told when it gets there
		}
		for ; k < len(refs) && start < limit && a.held < a.max; k++ {
			s.pieces = append(s.pieces, a.newPiece(start, &refs[k]))
			start += int64(refs[k].Size)
			s.next = start
		}
	}
}

func (a *Reader) newPiece(off int64, ref *tree.Ref) *piece {
	var p *piece
	if n := len(a.free); n > 0 {
		p, a.free = a.free[n-1], a.free[:n-1]
	} else {
		p = new(piece)
	}
	*p = piece{off: off, ref: *ref, left: int(ref.Size)}
	if ref.Zero {
		p.state = pieceReady
	} else {
		a.held += int64(ref.Size)
	}
	return p
}

// drop takes a piece out of a stream.
func (a *Reader) drop(s *stream, i int) {
	p := s.pieces[i]
	s.pieces[i] = nil
	if p.wanted {
		p.wanted = false
		a.ready.Broadcast() // look again: it is not there any more
	}
	if p.state == pieceFetched {
		p.dropped = true
		return
	}
	a.discard(p)
}

// discard ends a piece.
func (a *Reader) discard(p *piece) {
	if !p.ref.Zero {
		a.held -= int64(p.ref.Size)
	}
	if p.buf != nil {
		p.buf.Release()
		p.buf = nil
	}
	a.free = append(a.free, p)
}

// trim drops what lies too far behind the reader, and closes the gaps.
func (a *Reader) trim(s *stream) {
	for ; s.head < len(s.pieces); s.head++ {
		p := s.pieces[s.head]
		if p == nil {
			continue
		}
		if p.off+int64(p.ref.Size) > s.pos-aheadBehind {
			break
		}
		a.drop(s, s.head)
	}
	s.todo = max(s.todo, s.head)
	if s.head > len(s.pieces)/2 {
		n := copy(s.pieces, s.pieces[s.head:])
		clear(s.pieces[n:])
		s.pieces, s.todo, s.head = s.pieces[:n], s.todo-s.head, 0
	}
}

// reset makes a stream free.
func (a *Reader) reset(s *stream) {
	for i := s.head; i < len(s.pieces); i++ {
		if s.pieces[i] != nil {
			a.drop(s, i)
		}
	}
	*s = stream{pieces: s.pieces[:0]}
}

// dropIdle makes room; it reports whether there was something to drop.
func (a *Reader) dropIdle() bool {
	before := a.held
	for i := range a.streams {
		if s := &a.streams[i]; s.used > 0 && a.tick-s.used >= aheadIdle {
			a.reset(s)
		}
	}
	return a.held < before
}

// Held returns how many bytes are read ahead or on their way, and how many goroutines fetch.
func (a *Reader) Held() (bytes int64, fetches int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held, a.fetches
}

// Close ends all fetches and gives everything back. It may be called more than once.
func (a *Reader) Close() {
	a.mu.Lock()
	a.stopped.Store(true)
	a.ready.Broadcast()
	a.mu.Unlock()
	a.running.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.streams {
		a.reset(&a.streams[i])
	}
	a.view.Close()
}
