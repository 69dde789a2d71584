package main

import (
	"fmt"

	"github.com/zeebo/blake3"
)

// cached is how many decompressed frames a reader keeps, if a frame holds several chunks.
const cached = 64

// reader is what one goroutine needs to read images.
type reader struct {
	*memstore
	dec  *decoder
	buf  []byte
	at   map[int32]int // frame → slot in kept
	kept [cached]struct {
		frame int32
		raw   []byte
	}
	next int
}

// read reads an image with all workers and checks all its chunks.
func (s *memstore) read(refs []chunkRef) error {
	var readers [workers]*reader
	for i := range readers {
		dec, err := newDecoder(s.kinds[0].dict)
		if err != nil {
			return err
		}
		readers[i] = &reader{memstore: s, dec: dec, at: map[int32]int{}}
	}
	return segments(len(refs), func(i int) int { return int(refs[i].len) }, func(w, from, to int) error {
		for i := from; i < to; i++ {
			if err := readers[w].chunk(&refs[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// chunk reads one chunk.
func (r *reader) chunk(ref *chunkRef) error {
	if ref.frame == zeroFrame {
		r.buf = append(r.buf[:0], zeros[:ref.len]...)
		return nil
	}
	raw, err := r.inflate(ref.frame)
	if err != nil {
		return err
	}
	raw = raw[ref.off : ref.off+ref.len]
	if blake3.Sum256(raw) != ref.hash {
		return fmt.Errorf("a chunk of %d bytes came back wrong", ref.len)
	}
	return nil
}

// inflate decompresses a frame, unless it still has it.
func (r *reader) inflate(n int32) ([]byte, error) {
	if i, ok := r.at[n]; ok {
		return r.kept[i].raw, nil
	}
	f := &r.frames[n]
	slot := &r.kept[r.next]
	if r.frame > 0 {
		delete(r.at, slot.frame)
		r.at[n] = r.next
		r.next = (r.next + 1) % cached
	}
	if cap(slot.raw) < int(f.raw) {
		slot.raw = make([]byte, max(int(f.raw), 256<<10))
	}
	slot.frame, slot.raw = n, slot.raw[:f.raw]
	stored := r.workers[f.worker].slabs[f.slab][f.off : f.off+f.stored]
	return slot.raw, r.dec.decode(slot.raw, stored, f.how)
}
