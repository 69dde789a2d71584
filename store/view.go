package store

import (
	"errors"
	"fmt"
	"sync"
)

// view reads the chunks of one image with small caches: of leaves of its list, and of
// chunks that were read in part.
type view struct {
	s      *Store
	leaves *cache[[]chunkRef]
	chunks *cache[[]byte]
}

const (
	cachedLeaves = 16
	cachedChunks = 8
)

func newView(s *Store) view {
	return view{s: s, leaves: newCache[[]chunkRef](cachedLeaves), chunks: newCache[[]byte](cachedChunks)}
}

// cache keeps the last few values by hash; who asks for one that is being fetched waits.
type cache[T any] struct {
	mu   sync.Mutex
	m    map[Hash]*cached[T]
	max  int
	tick uint64
}

type cached[T any] struct {
	used  uint64
	ready chan struct{}
	val   T
	err   error
}

func newCache[T any](n int) *cache[T] { return &cache[T]{m: make(map[Hash]*cached[T], n+1), max: n} }

func (c *cache[T]) get(h Hash, fetch func() (T, error)) (T, error) {
	c.mu.Lock()
	c.tick++
	e := c.m[h]
	if e != nil {
		e.used = c.tick
		c.mu.Unlock()
		<-e.ready
		return e.val, e.err
	}
	e = &cached[T]{used: c.tick, ready: make(chan struct{})}
	c.m[h] = e
	c.evict()
	c.mu.Unlock()
	e.val, e.err = fetch()
	close(e.ready)
	if e.err != nil {
		c.mu.Lock()
		if c.m[h] == e {
			delete(c.m, h) // it may be healed by the next time
		}
		c.mu.Unlock()
	}
	return e.val, e.err
}

// peek returns a value that is here or on its way.
func (c *cache[T]) peek(h Hash) (v T, ok bool) {
	c.mu.Lock()
	e := c.m[h]
	c.mu.Unlock()
	if e == nil {
		return v, false
	}
	<-e.ready
	return e.val, e.err == nil
}

func (c *cache[T]) evict() {
	if len(c.m) <= c.max {
		return
	}
	var old Hash
	least := c.tick
	for h, e := range c.m {
		if e.used < least {
			old, least = h, e.used
		}
	}
	delete(c.m, old)
}

// readLeaf copies bytes at off into p, out of one chunk of the leaf that begins at base.
func (v *view) readLeaf(image string, p []byte, leaf span, base, off int64) (int, error) {
	refs, err := v.leaves.get(leaf.hash, func() ([]chunkRef, error) { return v.s.leaf(leaf) })
	if err != nil {
		return 0, blame(err, image, -1)
	}
	ref, start, ok := locate(refs, base, off)
	if !ok {
		return 0, blame(&ChunkError{Hash: leaf.hash, Err: errNode}, image, -1)
	}
	return v.copyChunk(image, p, ref, start, off)
}

// copyChunk copies bytes at off into p, out of the chunk that begins at start.
func (v *view) copyChunk(image string, p []byte, ref chunkRef, start, off int64) (int, error) {
	skip := int(off - start)
	n := min(len(p), int(ref.size)-skip)
	if ref.zero {
		clear(p[:n])
		return n, nil
	}
	if b, ok := v.chunks.peek(ref.hash); ok && len(b) == int(ref.size) {
		return copy(p[:n], b[skip:]), nil
	}
	if n == int(ref.size) {
		if err := v.s.readChunk(&ref.hash, p[:n]); err != nil {
			return 0, blame(err, image, start)
		}
		return n, nil
	}
	b, err := v.chunks.get(ref.hash, func() ([]byte, error) {
		b := make([]byte, ref.size)
		return b, v.s.readChunk(&ref.hash, b)
	})
	if err != nil {
		return 0, blame(err, image, start)
	}
	if len(b) != int(ref.size) {
		return 0, blame(&ChunkError{Hash: ref.hash, Err: errMismatch}, image, start)
	}
	return copy(p[:n], b[skip:]), nil
}

// blame says in a ChunkError which image it was read for.
func blame(err error, image string, off int64) error {
	var ce *ChunkError
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	out := *ce
	out.Image, out.Offset = image, off
	return &out
}

// leaf reads and decodes a leaf of a chunk list.
func (s *Store) leaf(sp span) ([]chunkRef, error) {
	b, err := s.readNode(&sp.hash)
	if err != nil {
		return nil, err
	}
	refs, total, err := decodeLeaf(b)
	if err == nil && total != sp.size {
		err = fmt.Errorf("%w: %d bytes, %d expected", errNode, total, sp.size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.hash, Err: err}
	}
	return refs, nil
}

// inner reads and decodes a node above the leaves.
func (s *Store) inner(sp span, level int) ([]span, error) {
	b, err := s.readNode(&sp.hash)
	if err != nil {
		return nil, err
	}
	spans, total, err := decodeInner(b, level)
	if err == nil && total != sp.size {
		err = fmt.Errorf("%w: %d bytes, %d expected", errNode, total, sp.size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.hash, Err: err}
	}
	return spans, nil
}

// walkLeaves calls fn for every leaf below a node, in order. seen, if set, is asked about
// every node first; what it knows is not entered.
func (s *Store) walkLeaves(sp span, level int, seen func(*Hash) (bool, error), fn func(span) error) error {
	if seen != nil {
		if known, err := seen(&sp.hash); known || err != nil {
			return err
		}
	}
	if level == 0 {
		return fn(sp)
	}
	spans, err := s.inner(sp, level)
	if err != nil {
		return err
	}
	for i := range spans {
		if err := s.walkLeaves(spans[i], level-1, seen, fn); err != nil {
			return err
		}
	}
	return nil
}
