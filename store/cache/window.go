package cache

import (
	"sort"
)

// Window holds the newest bytes of a running ingest, uncompressed, for readers that
// follow it. It never holds more than Limit bytes, nor fewer than the newest chunk.
type Window struct {
	Limit int64
	bytes int64         // of buffers
	ring  []windowChunk // in order of offset, from head on
	head  int
}

// windowChunk is a chunk and the buffer it is in, which it may share with its neighbours.
type windowChunk struct {
	off  int64
	data []byte
	buf  *Buf
}

// Push adds the chunk at off, whose bytes are in b.
func (w *Window) Push(off int64, data []byte, b *Buf) {
	if n := len(w.ring); n == w.head || w.ring[n-1].buf != b {
		w.bytes += int64(cap(b.Data))
	}
	w.ring = append(w.ring, windowChunk{off, data, b.Hold()})
	for w.bytes > w.Limit && len(w.ring)-w.head > 1 {
		old := &w.ring[w.head]
		if w.head++; w.ring[w.head].buf != old.buf {
			w.bytes -= int64(cap(old.buf.Data))
		}
		old.buf.Release()
		*old = windowChunk{}
	}
	if w.head > len(w.ring)/2 {
		n := copy(w.ring, w.ring[w.head:])
		clear(w.ring[n:])
		w.ring, w.head = w.ring[:n], 0
	}
}

// Find returns the chunk that holds off, and the buffer, held for the caller.
func (w *Window) Find(off int64) (data []byte, b *Buf, start int64, ok bool) {
	live := w.ring[w.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].off > off }) - 1
	if i < 0 || off >= live[i].off+int64(len(live[i].data)) {
		return nil, nil, 0, false
	}
	return live[i].data, live[i].buf.Hold(), live[i].off, true
}

// Clear gives everything back.
func (w *Window) Clear() {
	for _, c := range w.ring[w.head:] {
		c.buf.Release()
	}
	*w = Window{Limit: w.Limit}
}
