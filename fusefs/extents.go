package fusefs

import "slices"

// extents is the set of bytes of a file that were written: ascending, apart from each other.
type extents []span

// span is the bytes from start to before end.
type span struct{ start, end int64 }

// add puts a span into the set.
func (e *extents) add(s span) {
	if s.end <= s.start {
		return
	}
	// i is the first span that reaches s, j the first one behind it.
	i, _ := slices.BinarySearchFunc(*e, s.start, func(x span, at int64) int { return cmpInt(x.end, at) })
	j := i
	for j < len(*e) && (*e)[j].start <= s.end {
		s.start, s.end = min(s.start, (*e)[j].start), max(s.end, (*e)[j].end)
		j++
	}
	*e = slices.Replace(*e, i, j, s)
}

// cut removes everything from size on.
func (e *extents) cut(size int64) {
	for len(*e) > 0 {
		last := &(*e)[len(*e)-1]
		if last.start < size {
			last.end = min(last.end, size)
			return
		}
		*e = (*e)[:len(*e)-1]
	}
}

// whole returns how many bytes were written from 0 on without a gap.
func (e extents) whole() int64 {
	if len(e) == 0 || e[0].start > 0 {
		return 0
	}
	return e[0].end
}

func cmpInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
