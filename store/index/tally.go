package index

import (
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// Tally adds up what chunks take in packs, each once.
type Tally struct {
	Total int64 // bytes
	x     *Index
	marks *marks                  // alive: counted; walked: a node whose chunks are counted
	young map[chunk.Hash]struct{} // the same of chunks that no run knows yet
}

// NewTally makes an empty one. Nobody may replace runs while it is used.
func (x *Index) NewTally() *Tally {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return &Tally{x: x, marks: newMarks(x.runs), young: map[chunk.Hash]struct{}{}}
}

// Node counts a node and reports whether it was walked before.
func (w *Tally) Node(h *chunk.Hash) (walked bool, err error) {
	r, pos, err := w.count(h)
	if r == nil || err != nil {
		return false, err
	}
	return w.marks.walked[r].set(pos), nil
}

// Add counts a chunk.
func (w *Tally) Add(h *chunk.Hash) error {
	_, _, err := w.count(h)
	return err
}

// count adds a chunk, unless it was added before, and says where in the runs it is. One that
// is lost takes no room.
func (w *Tally) count(h *chunk.Hash) (*run, int, error) {
	x := w.x
	x.mu.RLock()
	defer x.mu.RUnlock()
	if l, ok := x.mem[*h]; ok && x.usable(l) {
		if _, known := w.young[*h]; !known {
			w.young[*h] = struct{}{}
			w.Total += int64(l.Stored) + pack.EntryLen
		}
		return nil, 0, nil
	}
	l, r, pos, ok, err := x.findRun(h, func(l pack.Loc, _ *run, _ int) bool { return x.usable(l) })
	if !ok || err != nil {
		return nil, 0, err
	}
	if !w.marks.alive[r].set(pos) {
		w.Total += int64(l.Stored) + pack.EntryLen
	}
	return r, pos, nil
}
