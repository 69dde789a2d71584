package store

import "sort"

// window holds the newest bytes of a running ingest, uncompressed, for readers that
// follow it. It never holds more than limit bytes, nor fewer than the newest chunk.
type window struct {
	limit int64
	bytes int64
	ring  []windowChunk // in order of offset, from head on
	head  int
}

type windowChunk struct {
	off int64
	buf *buf
}

// push adds the chunk at off and takes b over.
func (w *window) push(off int64, b *buf) {
	w.bytes += int64(len(b.data))
	w.ring = append(w.ring, windowChunk{off, b})
	for w.bytes > w.limit && len(w.ring)-w.head > 1 {
		old := &w.ring[w.head]
		w.bytes -= int64(len(old.buf.data))
		old.buf.release()
		old.buf = nil
		w.head++
	}
	if w.head > len(w.ring)/2 {
		n := copy(w.ring, w.ring[w.head:])
		clear(w.ring[n:])
		w.ring, w.head = w.ring[:n], 0
	}
}

// find returns the chunk that holds off, held for the caller.
func (w *window) find(off int64) (b *buf, start int64, ok bool) {
	live := w.ring[w.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].off > off }) - 1
	if i < 0 || off >= live[i].off+int64(len(live[i].buf.data)) {
		return nil, 0, false
	}
	return live[i].buf.hold(), live[i].off, true
}

// clear gives everything back.
func (w *window) clear() {
	for _, c := range w.ring[w.head:] {
		c.buf.release()
	}
	*w = window{limit: w.limit}
}
