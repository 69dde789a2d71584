package main

import (
	"bytes"
	"strings"
	"sync"

	"github.com/zeebo/blake3"
)

// window is a place in memory: what has it, and the number of the aligned window.
type window struct {
	who    string
	number uint64
}

// windows returns the place of every chunk of cut.
func (in *input) windows(size uint64) (all []window) {
	for _, r := range in.regions {
		who := r.What
		if f := strings.Fields(who); len(f) > 1 && f[0] == "pid" {
			who = f[1] // the bounds of a mapping change when it grows
		}
		last := ^uint64(0)
		for _, e := range r.Extents {
			for n := e.Start / size; n*size < e.Start+e.Len; n++ {
				if n != last {
					all = append(all, window{who, n})
				}
				last = n
			}
		}
	}
	return all
}

// bases are the chunks that stood in each place when it was last stored as a whole.
type bases struct {
	sync.Mutex
	at map[window][]byte
}

// changed returns the pages of a new chunk that differ from what was last stored as a whole at
// the same place, and the reference to that; or the chunk itself, if more than half of them do. dst has room for them.
func (s *bases) changed(dst []byte, at window, b []byte) []byte {
	s.Lock()
	base := s.at[at]
	s.Unlock()
	dst = dst[:0]
	for off := 0; off < len(b) && len(base) == len(b); off += pageSize {
		if page := b[off : off+pageSize]; !bytes.Equal(page, base[off:off+pageSize]) {
			dst = append(dst, page...)
		}
	}
	if len(base) != len(b) || len(dst) > len(b)/2 {
		s.Lock()
		s.at[at] = b
		s.Unlock()
		return b
	}
	h := blake3.Sum256(base)
	return append(append(dst, h[:]...), make([]byte, 2)...) // which pages they are
}
