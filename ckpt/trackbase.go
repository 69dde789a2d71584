package ckpt

import (
	"fmt"
	"io"
	"math/bits"
	"sort"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// base is a stored image of the tree, the one before: what has not been written since is taken from there.
type base struct {
	mms     map[procID][]window
	r       io.ReaderAt // the whole image; nil until it is stored
	release func()      // gives r back
}

func (b *base) drop() {
	if b != nil && b.release != nil {
		b.release()
		b.release = nil
	}
}

// procID is a process: the start time, in clock ticks after boot, tells it from a later one with its number.
type procID struct {
	pid   int
	start uint64
}

// window is a chunk of private memory in an image: the pages of one mapping that lie in one aligned piece
// of address space.
type window struct {
	start uint64 // of its first page
	off   int64  // in the image
	hash  image.Hash
	pages uint8 // bit n: page n of the aligned piece is there
}

// windowSize is how long the aligned pieces are.
const windowSize = image.ChunkSize

func windowOf(addr uint64) uint64 { return addr &^ (windowSize - 1) }

// pageBits says which pages of the piece around start are in a set, as far as they lie in [start, end).
func pageBits(set pageSet, start, end uint64) (mask uint8) {
	w := windowOf(start)
	for _, e := range set[set.from(start):] {
		if e.Start >= end {
			break
		}
		for at := max(e.Start, start); at < min(e.Start+e.Len, end); at += pageSize {
			mask |= 1 << ((at - w) / pageSize)
		}
	}
	return mask
}

// chunkEnd is where the piece of a mapping ends that a chunk is about.
func chunkEnd(c *image.Chunk, vma *image.VMA) uint64 {
	return min(windowOf(c.Start)+windowSize, vma.End)
}

// bits is pageBits for a chunk of the image.
func (c *Checkpoint) bits(k *image.Chunk) uint8 {
	vma := &c.m.MMs[k.Region.MM].VMAs[k.Region.VMA]
	return pageBits(vma.Extents, k.Start, chunkEnd(k, vma))
}

// newBase is what the next checkpoint may take from this one, once it is stored.
func (c *Checkpoint) newBase(hashes []image.Hash) *base {
	b := &base{mms: map[procID][]window{}}
	for i := range c.layout.Chunks {
		k := &c.layout.Chunks[i]
		if k.Region.Kind != image.RegionVMA || c.m.MMs[k.Region.MM].VMAs[k.Region.VMA].Kind != image.VMAAnon {
			continue
		}
		p := c.procs[k.Region.MM]
		if p.track == nil {
			continue
		}
		b.mms[p.track.t.id] = append(b.mms[p.track.t.id], window{k.Start, k.Off, hashes[i], c.bits(k)})
	}
	return b
}

// findSame finds the chunks that the base has too: all their pages were there, none was written since.
func (c *Checkpoint) findSame() {
	if c.o.run == nil || c.o.run.base == nil {
		return
	}
	c.same = make([]*window, len(c.layout.Chunks))
	for i := range c.layout.Chunks {
		k := &c.layout.Chunks[i]
		if k.Region.Kind != image.RegionVMA {
			continue
		}
		p := c.procs[k.Region.MM]
		vma := &c.m.MMs[k.Region.MM].VMAs[k.Region.VMA]
		if p.mem.tracked[vma.Start] == nil || p.track.dirty.touches(k.Start, chunkEnd(k, vma)) {
			continue
		}
		w := findWindow(p.track.old, k.Start)
		if w != nil && w.start == k.Start && w.pages == c.bits(k) {
			c.same[i] = w
			c.reused += int64(k.Len)
		}
	}
}

// findWindow returns the last window that begins at or before addr, or nil.
func findWindow(ws []window, addr uint64) *window {
	i := sort.Search(len(ws), func(i int) bool { return ws[i].start > addr })
	if i == 0 {
		return nil
	}
	return &ws[i-1]
}

// changedReader gives the pages of a tracked process that ran on without a snapshot: those that had been written
// were copied, the others are in the base.
type changedReader struct {
	o     *overlay
	dirty pageSet // all of it is in o
	old   []window
	base  io.ReaderAt
}

// ReadAt reads whole pages or parts of them; off is the address.
func (r *changedReader) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		addr := uint64(off) + uint64(done)
		at := addr &^ (pageSize - 1)
		n := min(len(p)-done, int(at+pageSize-addr))
		if page := r.o.page(at); page != nil {
			copy(p[done:done+n], page[addr-at:])
		} else if err := r.fromBase(p[done:done+n], at, addr-at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// fromBase reads from a page of the base.
func (r *changedReader) fromBase(p []byte, at, in uint64) error {
	if r.dirty.touches(at, at+pageSize) {
		return fmt.Errorf("the page at %#x was written and is not copied", at)
	}
	w := findWindow(r.old, at)
	if w == nil || windowOf(w.start) != windowOf(at) {
		return fmt.Errorf("the page at %#x was not written and is not in the checkpoint before", at)
	}
	bit := (at - windowOf(at)) / pageSize
	if w.pages&(1<<bit) == 0 {
		return fmt.Errorf("the page at %#x was not written and is not in the checkpoint before", at)
	}
	before := bits.OnesCount8(w.pages & (1<<bit - 1))
	_, err := r.base.ReadAt(p, w.off+int64(before)*int64(pageSize)+int64(in))
	if err != nil {
		return fmt.Errorf("the checkpoint before: %w", err)
	}
	return nil
}
