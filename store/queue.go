package store

import (
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/pack"
)

// queue has the chunks that were given to Put and are in no pack yet. A chunk leaves it after the
// index has learned where it is, so whoever looks here first misses nothing.
type queue struct {
	mu sync.RWMutex
	m  map[chunk.Hash]*job
}

// enqueue joins an ingest to the job that is about to store h, or makes j that job. It
// reports whether j was taken; if not, the chunk will be stored or is, then in the pack p.
func (x *queue) enqueue(ix *index.Index, h *chunk.Hash, j *job, in *Ingest) (taken bool, p *pack.Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.join(h, in) {
		return false, nil
	}
	if p := ix.InMemory(h); p != nil {
		return false, p
	}
	x.m[*h] = j
	return true, nil
}

// join makes an ingest wait for a chunk that is queued.
func (x *queue) join(h *chunk.Hash, in *Ingest) bool {
	j := x.m[*h]
	if j == nil {
		return false
	}
	in.jobs.Add(1)
	j.waiters = append(j.waiters, in)
	return true
}

// unqueue takes chunks out that are in a pack, or will never be: nobody joins any more.
func (x *queue) remove(jobs []*job) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, j := range jobs {
		delete(x.m, j.hash)
	}
}

// has reports whether a chunk is on its way.
func (x *queue) has(h *chunk.Hash) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.m[*h] != nil
}

// read copies a chunk that is still on its way to a pack.
func (x *queue) read(h *chunk.Hash, dst []byte) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	j := x.m[*h]
	if j == nil || len(j.data) != len(dst) {
		return false
	}
	copy(dst, j.data)
	return true
}

// sizeOf returns the length of a chunk, wherever it is.
func (s *Store) sizeOf(h *chunk.Hash) (int, bool, error) {
	s.queue.mu.RLock()
	if j := s.queue.m[*h]; j != nil {
		defer s.queue.mu.RUnlock()
		return len(j.data), true, nil
	}
	s.queue.mu.RUnlock()
	l, ok, err := s.ix.Find(h)
	return int(l.Raw), ok, err
}

// mark tells the index that GC found a chunk alive, see index.mark.
func (s *Store) mark(h *chunk.Hash, node bool) (known, found bool, err error) {
	if s.queue.has(h) {
		return false, true, nil
	}
	return s.ix.Mark(h, node)
}
