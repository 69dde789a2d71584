// Package cache has buffers that several hold at once, and keeps the last few decoded chunks of an
// image for who reads on.
package cache

import (
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// Cache keeps the last few values by hash, in slots of its own, so that nothing is allocated
// to look one up. Who asks for one that is being fetched waits.
type Cache[T any] struct {
	drop func(T) // gets what is not kept any more; nil if there is nothing to do

	mu    sync.Mutex
	wake  sync.Cond // a fetch ended or a slot got free
	slots []Slot[T]
	tick  uint64
}

// Slot is a place in a cache.
type Slot[T any] struct {
	hash     chunk.Hash
	Val      T
	used     uint64 // when it was last asked for; 0: empty
	users    int    // how many have val in their hands; it stays as long
	fetching bool
}

// New makes a cache of n values.
func New[T any](n int, drop func(T)) *Cache[T] {
	c := &Cache[T]{slots: make([]Slot[T], n), drop: drop}
	c.wake.L = &c.mu
	return c
}

// Get returns the slot of a value, which done must give back.
func (c *Cache[T]) Get(h *chunk.Hash, fetch func() (T, error)) (*Slot[T], error) {
	c.mu.Lock()
	e := c.take(h)
	if e != nil {
		c.mu.Unlock()
		return e, nil
	}
	e = c.vacate()
	c.tick++
	e.hash, e.used, e.users, e.fetching = *h, c.tick, 1, true
	c.mu.Unlock()
	val, err := fetch()
	c.mu.Lock()
	defer c.mu.Unlock()
	e.fetching = false
	c.wake.Broadcast()
	if err != nil {
		e.used, e.users = 0, 0 // it may be healed by the next time
		return nil, err
	}
	e.Val = val
	return e, nil
}

// Peek returns the slot of a value that is here or on its way, or nil.
func (c *Cache[T]) Peek(h *chunk.Hash) *Slot[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(h)
}

// Now returns a value that is here. It is for caches that drop nothing.
func (c *Cache[T]) Now(h *chunk.Hash) (v T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if e := &c.slots[i]; e.used > 0 && !e.fetching && e.hash == *h {
			return e.Val, true
		}
	}
	return v, false
}

// Done gives a slot back.
func (c *Cache[T]) Done(e *Slot[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.users--; e.users == 0 {
		c.wake.Broadcast()
	}
}

// take is find that waits for a slot to put h in if it is not there: either find or vacate
// will do when it returns. Called with mu held.
func (c *Cache[T]) take(h *chunk.Hash) *Slot[T] {
	for {
		if e := c.find(h); e != nil {
			return e
		}
		for i := range c.slots {
			if c.slots[i].users == 0 {
				return nil
			}
		}
		c.wake.Wait()
	}
}

// find returns the slot of h, when its fetch has ended, or nil. Called with mu held.
func (c *Cache[T]) find(h *chunk.Hash) *Slot[T] {
	for i := 0; i < len(c.slots); i++ {
		e := &c.slots[i]
		switch {
		case e.used == 0 || e.hash != *h:
		case e.fetching:
			c.wake.Wait()
			i = -1 // anything may have changed
		default:
			c.tick++
			e.used = c.tick
			e.users++
			return e
		}
	}
	return nil
}

// vacate empties the slot that was not used for longest. Called with mu held, and with a
// slot that nobody uses.
func (c *Cache[T]) vacate() *Slot[T] {
	var old *Slot[T]
	for i := range c.slots {
		if e := &c.slots[i]; e.users == 0 && (old == nil || e.used < old.used) {
			old = e
		}
	}
	c.empty(old)
	return old
}

func (c *Cache[T]) empty(e *Slot[T]) {
	if e.used > 0 && c.drop != nil {
		c.drop(e.Val)
	}
	*e = Slot[T]{}
}

// Close drops what nobody uses.
func (c *Cache[T]) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if e := &c.slots[i]; e.users == 0 {
			c.empty(e)
		}
	}
}
