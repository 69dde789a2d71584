package ckpt

import "github.com/ckptfs/ckptfs/ckpt/image"

// pageSet is a set of pages: extents in order of their addresses, none of which touches another.
type pageSet []image.Extent

// add appends pages that lie behind all others.
func (s pageSet) add(start, end uint64) pageSet {
	if start >= end {
		return s
	}
	if n := len(s); n > 0 && s[n-1].Start+s[n-1].Len == start {
		s[n-1].Len += end - start
		return s
	}
	return append(s, image.Extent{Start: start, Len: end - start})
}

// bytes is how much memory it is.
func (s pageSet) bytes() uint64 { return extentsLen(s) }

// from is the number of the first extent that ends behind addr.
func (s pageSet) from(addr uint64) int {
	lo, hi := 0, len(s)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if s[mid].Start+s[mid].Len <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// within returns the part of it in [start, end).
func (s pageSet) within(start, end uint64) (out pageSet) {
	for _, e := range s[s.from(start):] {
		if e.Start >= end {
			break
		}
		out = out.add(max(e.Start, start), min(e.Start+e.Len, end))
	}
	return out
}

// contains reports whether all of [start, end) is in it.
func (s pageSet) contains(start, end uint64) bool {
	i := s.from(start)
	return i < len(s) && s[i].Start <= start && end <= s[i].Start+s[i].Len
}

// touches reports whether any page of [start, end) is in it.
func (s pageSet) touches(start, end uint64) bool {
	i := s.from(start)
	return i < len(s) && s[i].Start < end
}

// union returns the pages that are in one of the two.
func (s pageSet) union(t pageSet) pageSet {
	if len(s) == 0 || len(t) == 0 {
		return append(append(pageSet(nil), s...), t...)
	}
	out := make(pageSet, 0, len(s)+len(t))
	for len(s) > 0 || len(t) > 0 {
		next := &s
		if len(s) == 0 || len(t) > 0 && t[0].Start < s[0].Start {
			next = &t
		}
		e := (*next)[0]
		*next = (*next)[1:]
		if n := len(out); n > 0 && out[n-1].Start+out[n-1].Len >= e.Start {
			last := &out[n-1]
			last.Len = max(last.Start+last.Len, e.Start+e.Len) - last.Start
		} else {
			out = append(out, e)
		}
	}
	return out
}

// without returns the pages that are not in t.
func (s pageSet) without(t pageSet) pageSet {
	if len(t) == 0 {
		return s
	}
	var out pageSet
	for _, e := range s {
		start, end := e.Start, e.Start+e.Len
		for len(t) > 0 && t[0].Start+t[0].Len <= start {
			t = t[1:]
		}
		for _, c := range t {
			if c.Start >= end {
				break
			}
			out = out.add(start, min(c.Start, end))
			start = max(start, c.Start+c.Len)
		}
		out = out.add(start, end)
	}
	return out
}

// joined makes a set of extents in order that may touch each other.
func (s pageSet) joined() (out pageSet) {
	for _, e := range s {
		out = out.add(e.Start, e.Start+e.Len)
	}
	return out
}
