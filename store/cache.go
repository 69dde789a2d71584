package store

import (
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// cache keeps the last few values by hash, in slots of its own, so that nothing is allocated
// to look one up. Who asks for one that is being fetched waits.
type cache[T any] struct {
	drop func(T) // gets what is not kept any more; nil if there is nothing to do

	mu    sync.Mutex
	wake  sync.Cond // a fetch ended or a slot got free
	slots []slot[T]
	tick  uint64
}

// slot is a place in a cache.
type slot[T any] struct {
	hash     chunk.Hash
	val      T
	used     uint64 // when it was last asked for; 0: empty
	users    int    // how many have val in their hands; it stays as long
	fetching bool
}

func newCache[T any](n int, drop func(T)) *cache[T] {
	c := &cache[T]{slots: make([]slot[T], n), drop: drop}
	c.wake.L = &c.mu
	return c
}

// get returns the slot of a value, which done must give back.
func (c *cache[T]) get(h *chunk.Hash, fetch func() (T, error)) (*slot[T], error) {
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
	e.val = val
	return e, nil
}

// peek returns the slot of a value that is here or on its way, or nil.
func (c *cache[T]) peek(h *chunk.Hash) *slot[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(h)
}

// now returns a value that is here. It is for caches that drop nothing.
func (c *cache[T]) now(h *chunk.Hash) (v T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if e := &c.slots[i]; e.used > 0 && !e.fetching && e.hash == *h {
			return e.val, true
		}
	}
	return v, false
}

// done gives a slot back.
func (c *cache[T]) done(e *slot[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.users--; e.users == 0 {
		c.wake.Broadcast()
	}
}

// take is find that waits for a slot to put h in if it is not there: either find or vacate
// will do when it returns. Called with mu held.
func (c *cache[T]) take(h *chunk.Hash) *slot[T] {
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
func (c *cache[T]) find(h *chunk.Hash) *slot[T] {
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
func (c *cache[T]) vacate() *slot[T] {
	var old *slot[T]
	for i := range c.slots {
		if e := &c.slots[i]; e.users == 0 && (old == nil || e.used < old.used) {
			old = e
		}
	}
	c.empty(old)
	return old
}

func (c *cache[T]) empty(e *slot[T]) {
	if e.used > 0 && c.drop != nil {
		c.drop(e.val)
	}
	*e = slot[T]{}
}

// close drops what nobody uses.
func (c *cache[T]) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if e := &c.slots[i]; e.users == 0 {
			c.empty(e)
		}
	}
}
