package main

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
)

type hash = [32]byte

// cutting is how images are cut into chunks and what is compressed as one.
type cutting struct {
	size      uint64 // of chunks, bytes
	byContent bool   // see cutByContent
	frame     int    // bytes of new chunks that are compressed together; 0: each on its own
	runs      bool   // of frame: only of chunks that follow each other in the image
	delta     bool   // only the pages that changed, see bases; cannot be read
}

func (c *cutting) name() string {
	n := fmt.Sprintf("%d KiB", c.size>>10)
	if c.byContent {
		n += " by content"
	}
	if c.frame > 0 {
		n += fmt.Sprintf(" in %d", c.frame>>10)
	}
	if c.runs {
		n += " runs"
	}
	if c.delta {
		n += " delta"
	}
	return n
}

func (c *cutting) cut(in *input) [][]byte {
	if c.byContent {
		return in.cutByContent(c.size)
	}
	return in.cut(c.size)
}

// count is how many chunks images have, and their bytes.
func (c *cutting) count(ins []*input) (chunks int, n int64) {
	for _, in := range ins {
		chunks += len(c.cut(in))
		n += int64(len(in.data))
	}
	return chunks, n
}

// place is where a chunk is: in a frame, at an offset. There is nothing in it for the
// garbage collector, whose work on millions of chunks would otherwise be measured too.
type place struct{ frame, off int32 }

const zeroFrame = -1 // the place of a chunk of zeros, which is not stored

// frame is what is compressed as one.
type frame struct {
	slab, off   int32
	stored, raw int32
	how, worker uint8
}

// workers is how many goroutines store and read.
const workers = 2

// memstore is a store in memory. Its frames are kept in one codec, to be read again, or only
// counted, in several.
type memstore struct {
	cutting
	sample  int32 // of how many frames one is compressed, if they are only counted; 0: keep them
	kinds   []codecKind
	shards  [64]shard
	frames  []frame
	n       atomic.Int32 // frames in use
	bases   bases
	workers [workers]*worker
}

type shard struct {
	sync.Mutex
	m map[hash]place
}

// chunkRef is one chunk of an image.
type chunkRef struct {
	hash hash
	place
	len int32
}

func newMemstore(c cutting, ins []*input, sample int, kinds ...codecKind) (*memstore, error) {
	chunks, _ := c.count(ins)
	s := &memstore{cutting: c, sample: int32(sample), bases: bases{at: map[window][]byte{}}, kinds: kinds, frames: make([]frame, chunks+chunks/8+4096)}
	for i := range s.shards {
		s.shards[i].m = make(map[hash]place, chunks/2/len(s.shards))
	}
	for i := range s.workers {
		w := &worker{memstore: s, id: uint8(i), tally: make([]tally, len(kinds)), open: -1, raw: make([]byte, 0, 2*c.size)}
		for _, k := range kinds {
			codec, err := k.make()
			if err != nil {
				return nil, err
			}
			w.codecs = append(w.codecs, codec)
		}
		s.workers[i] = w
	}
	return s, nil
}

// tally is what is stored with the codec of a number.
func (s *memstore) tally(codec int) (t tally) {
	for _, w := range s.workers {
		t.add(&w.tally[codec], 1)
	}
	return t
}

// segment is how many bytes one goroutine takes at a time.
const segment = 8 << 20

// segments calls f from all workers for runs of items that have about segment bytes together.
func segments(n int, length func(i int) int, f func(worker, from, to int) error) error {
	var starts []int
	for i, sum := 0, segment; i < n; i++ {
		if sum >= segment {
			starts, sum = append(starts, i), 0
		}
		sum += length(i)
	}
	starts = append(starts, n)
	var next atomic.Int32
	var errs [workers]error
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1))
				if i >= len(starts) {
					return
				}
				errs[w] = f(w, starts[i-1], starts[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// ingest stores one image, its trailer and its chunk list.
func (s *memstore) ingest(in *input) []chunkRef {
	chunks := s.cut(in)
	places := make([]window, len(chunks))
	if s.delta {
		places = in.windows(s.size)
	}
	refs := make([]chunkRef, len(chunks), len(chunks)+len(chunks)*len(hash{})/int(s.size)+1)
	_ = segments(len(chunks), func(i int) int { return len(chunks[i]) }, func(w, from, to int) error { // f returns none
		for i := from; i < to; i++ {
			refs[i] = s.workers[w].put(chunks[i], kindData, places[i])
		}
		s.workers[w].flush()
		return nil
	})
	trailer := make([]byte, 0, len(refs)*len(hash{}))
	for i := range refs {
		trailer = append(trailer, refs[i].hash[:]...)
	}
	for len(trailer) > 0 {
		n := min(len(trailer), int(s.size))
		refs = append(refs, s.workers[0].put(trailer[:n], kindTrailer, window{}))
		trailer = trailer[n:]
	}
	putTree(refs, func(node []byte) hash { return s.workers[0].put(node, kindTree, window{}).hash })
	return refs
}

// worker is what one goroutine needs to store chunks.
type worker struct {
	*memstore
	id      uint8
	codecs  []codec
	tally   []tally // one for each codec
	slabs   [][]byte
	scratch []byte
	open    int32  // frame that is being filled, or -1
	raw     []byte // its bytes; or room for the changed pages of a chunk
}

var zeros [1 << 20]byte

// put stores a chunk if it is new. What is grouped is compressed only at flush.
func (w *worker) put(b []byte, kind int, at window) chunkRef {
	ref := chunkRef{hash: blake3.Sum256(b), len: int32(len(b)), place: place{frame: zeroFrame}}
	if bytes.Equal(b, zeros[:len(b)]) {
		return ref
	}
	grouped := w.frame > 0 && kind == kindData
	known := w.look(&ref, grouped)
	switch {
	case known && grouped && w.runs:
		w.flush()
	case known:
	case grouped:
		w.count(kind, 1, len(b))
		w.open, w.raw = ref.frame, append(w.raw, b...)
		if len(w.raw) >= w.frame {
			w.flush()
		}
	default:
		if w.delta && kind == kindData {
			b = w.bases.changed(w.raw, at, b)
		}
		w.count(kind, 1, len(b))
		w.write(ref.frame, b, kind)
	}
	return ref
}

// look fills in the place of a chunk, a new one if it is not known.
func (w *worker) look(ref *chunkRef, grouped bool) (known bool) {
	sh := &w.shards[ref.hash[0]%64]
	sh.Lock()
	defer sh.Unlock()
	p, known := sh.m[ref.hash]
	if !known {
		if grouped && w.open >= 0 {
			p = place{w.open, int32(len(w.raw))}
		} else {
			p = place{w.n.Add(1) - 1, 0}
		}
		sh.m[ref.hash] = p
	}
	ref.place = p
	return known
}

func (w *worker) count(kind, chunks, raw int) {
	for i := range w.tally {
		w.tally[i][kind].chunks += int64(chunks)
		w.tally[i][kind].raw += int64(raw)
	}
}

// flush ends the frame that is being filled.
func (w *worker) flush() {
	if w.open >= 0 {
		w.write(w.open, w.raw, kindData)
		w.open, w.raw = -1, w.raw[:0]
	}
}

// write compresses a frame.
func (w *worker) write(n int32, raw []byte, kind int) {
	if w.sample > 0 {
		if kind != kindData || n%w.sample == 0 {
			w.countAll(raw, kind)
		}
		return
	}
	last := len(w.slabs) - 1
	if last < 0 || cap(w.slabs[last])-len(w.slabs[last]) < len(raw)+len(raw)/4+pageSize {
		w.slabs = append(w.slabs, takeSlab())
		last++
	}
	off := len(w.slabs[last])
	slab, how := w.codecs[0].encode(w.slabs[last], raw)
	w.slabs[last] = slab
	w.frames[n] = frame{slab: int32(last), off: int32(off), stored: int32(len(slab) - off), raw: int32(len(raw)), how: how, worker: w.id}
	w.tally[0][kind].tried += int64(len(raw))
	w.tally[0][kind].stored += int64(len(slab) - off)
}

// countAll only counts what every codec makes of a frame. A mix is zstd or nothing, so its
// zstd is not done again.
func (w *worker) countAll(raw []byte, kind int) {
	fastest := 0
	for i := range w.codecs {
		n := len(raw)
		z, _ := w.codecs[i].(*zstdCodec)
		switch {
		case z == nil || z.probe == nil:
			w.scratch, _ = w.codecs[i].encode(w.scratch[:0], raw)
			n = len(w.scratch)
		case z.worthTrying(raw):
			n = fastest
		}
		if w.kinds[i].same(&codecZstd) {
			fastest = n
		}
		w.tally[i][kind].tried += int64(len(raw))
		w.tally[i][kind].stored += int64(n)
	}
}

// slabSize is how much memory for stored frames is taken at once.
const slabSize = 32 << 20

// slabs are memory that was used before, so that page faults are not measured.
var slabs struct {
	sync.Mutex
	free [][]byte
}

// release gives the memory of a store to the next one.
func (s *memstore) release() {
	slabs.Lock()
	defer slabs.Unlock()
	for _, w := range s.workers {
		slabs.free = append(slabs.free, w.slabs...)
	}
}

func takeSlab() []byte {
	slabs.Lock()
	defer slabs.Unlock()
	if n := len(slabs.free); n > 0 {
		b := slabs.free[n-1]
		slabs.free = slabs.free[:n-1]
		return b[:0]
	}
	b := make([]byte, slabSize)
	for i := 0; i < len(b); i += pageSize {
		b[i] = 1 // so that the page is there
	}
	return b[:0]
}
