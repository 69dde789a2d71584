package lazy

import (
	"cmp"
	"math/bits"
	"slices"
)

// run is a part of the image and where in memory it belongs.
type run struct {
	addr, length uint64
	off          int64 // in the image
}

func (r run) end() uint64 { return r.addr + r.length }

// firstBehind finds, among runs by address, the first that ends behind one.
func firstBehind(r run, addr uint64) int {
	if r.end() <= addr {
		return -1
	}
	return 1
}

func (r run) offEnd() int64 { return r.off + int64(r.length) }

// missing knows which pages of an address space are still to come from the image. What is
// neither missing nor there is zero: the program has just got it, or has thrown away what was there.
type missing struct {
	byAddr []run // all that was to come at first and has an address; they do not overlap
	byOff  []run // the same
	base   int64 // of the first page that due tells about
	due    []uint64
	left   int // pages
}

// newMissing begins with everything missing. The runs are in the order of the image.
func newMissing(runs []run) *missing {
	m := &missing{byOff: runs}
	if len(runs) == 0 {
		return m
	}
	m.base = runs[0].off
	m.due = make([]uint64, (m.page(runs[len(runs)-1].offEnd())+63)/64)
	for _, r := range runs {
		for p := m.page(r.off); p < m.page(r.offEnd()); p++ {
			m.due[p/64] |= 1 << (p % 64)
		}
		m.left += int(r.length / pageSize)
	}
	m.sortRuns()
	return m
}

func (m *missing) page(off int64) int { return int((off - m.base) / pageSize) }

// sortRuns puts both lists in order, after a change of byOff.
func (m *missing) sortRuns() {
	slices.SortFunc(m.byOff, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	m.byAddr = slices.Clone(m.byOff)
	slices.SortFunc(m.byAddr, func(a, b run) int { return cmp.Compare(a.addr, b.addr) })
}

// clone is what a child that has just been forked misses.
func (m *missing) clone() *missing {
	c := *m
	c.byAddr, c.byOff, c.due = slices.Clone(m.byAddr), slices.Clone(m.byOff), slices.Clone(m.due)
	return &c
}

// bytes is how much is missing.
func (m *missing) bytes() int64 { return int64(m.left) * pageSize }

// at is the place in the image of the page at an address, if it is missing.
func (m *missing) at(addr uint64) (off int64, ok bool) {
	i, _ := slices.BinarySearchFunc(m.byAddr, addr, firstBehind)
	if i == len(m.byAddr) || m.byAddr[i].addr > addr {
		return 0, false
	}
	off = m.byAddr[i].off + int64(addr-m.byAddr[i].addr)
	return off, m.isDue(m.page(off))
}

func (m *missing) isDue(page int) bool { return m.due[page/64]>>(page%64)&1 != 0 }

// next is the first missing page of the image from off on, or -1.
func (m *missing) next(off int64) int64 {
	p := max(m.page(off), 0)
	for w := p / 64; w < len(m.due); w++ {
		v := m.due[w]
		if w == p/64 {
			v &= ^uint64(0) << (p % 64)
		}
		if v != 0 {
			return m.base + int64(w*64+bits.TrailingZeros64(v))*pageSize
		}
	}
	return -1
}

// pieces lists what is missing of a part of the image.
func (m *missing) pieces(from, to int64) (all []run) {
	i, _ := slices.BinarySearchFunc(m.byOff, from, func(r run, off int64) int {
		if r.offEnd() <= off {
			return -1
		}
		return 1
	})
	for ; i < len(m.byOff) && m.byOff[i].off < to; i++ {
		r := m.byOff[i]
		for off := max(r.off, from); off < min(r.offEnd(), to); off += pageSize {
			if !m.isDue(m.page(off)) {
				continue
			}
			addr := r.addr + uint64(off-r.off)
			if n := len(all); n > 0 && all[n-1].offEnd() == off && all[n-1].end() == addr {
				all[n-1].length += pageSize
			} else {
				all = append(all, run{addr, pageSize, off})
			}
		}
	}
	return all
}

// came notes that pages are there, or never will be.
func (m *missing) came(off int64, length uint64) {
	for p := m.page(off); p < m.page(off+int64(length)); p++ {
		if m.isDue(p) {
			m.due[p/64] &^= 1 << (p % 64)
			m.left--
		}
	}
}

// drop notes that the program has thrown away a part of its memory.
func (m *missing) drop(start, end uint64) {
	for _, r := range m.overlap(start, end) {
		m.came(r.off, r.length)
	}
}

// overlap lists the parts of runs in a part of memory.
func (m *missing) overlap(start, end uint64) []run {
	i, _ := slices.BinarySearchFunc(m.byAddr, start, firstBehind)
	k := i
	for k < len(m.byAddr) && m.byAddr[k].addr < end {
		k++
	}
	return within(m.byAddr[i:k], start, end)
}

// take takes what was to come to a part of memory out, with its pages still missing, for another place.
func (m *missing) take(start, end uint64) []run {
	taken := m.overlap(start, end)
	if len(taken) > 0 {
		m.byOff = cut(m.byOff, start, end)
		m.sortRuns()
	}
	return taken
}

// put puts what take took at its new place, of which nothing else may be known.
func (m *missing) put(rs []run) {
	if len(rs) > 0 {
		m.byOff = append(m.byOff, rs...)
		m.sortRuns()
	}
}

// lose notes that what take took has no place any more.
func (m *missing) lose(rs []run) {
	for _, r := range rs {
		m.came(r.off, r.length)
	}
}

// within lists the parts of runs in a part of memory.
func within(rs []run, start, end uint64) (all []run) {
	for _, r := range rs {
		if from, to := max(r.addr, start), min(r.end(), end); from < to {
			all = append(all, run{from, to - from, r.off + int64(from-r.addr)})
		}
	}
	return all
}

// cut takes a part of memory out of runs.
func cut(rs []run, start, end uint64) (out []run) {
	for _, r := range rs {
		if r.end() <= start || r.addr >= end {
			out = append(out, r)
			continue
		}
		if r.addr < start {
			out = append(out, run{r.addr, start - r.addr, r.off})
		}
		if r.end() > end {
			out = append(out, run{end, r.end() - end, r.off + int64(end-r.addr)})
		}
	}
	return out
}
