package fusefs

import (
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/store"
)

// collectDelay is how long removed images stay in the store: rm -r of many comes one by one.
const collectDelay = 2 * time.Second

// pendingDelay is when GC of a bucket comes back to what it has marked; until the store says that
// it is time again, it is put off once more.
const pendingDelay = time.Minute

// collectShare is the part of the time that the collector may work, one in so many: it looks
// at all of the store, and the checkpoints need the processors too.
const collectShare = 10

// collector is what the background knows of the store.
type collector struct {
	keep  store.Policy
	poked chan struct{} // there may be something to do
	now   chan struct{} // and it cannot wait
	quit  <-chan struct{}

	mu   sync.Mutex
	dead bool                // something in the store is not needed any more
	open map[string]struct{} // images that were committed and will be opened in a moment
}

func newCollector(keep store.Policy, quit <-chan struct{}) *collector {
	c := &collector{keep: keep, poked: make(chan struct{}, 1), now: make(chan struct{}, 1), quit: quit, open: make(map[string]struct{})}
	c.keep.Spare = c.isOpening
	return c
}

// look says that there is a new image, and so maybe an old one that has to go.
func (c *collector) look() { poke(c.poked) }

// garbage says that the store holds something that nobody needs any more.
func (c *collector) garbage() {
	c.mu.Lock()
	c.dead = true
	c.mu.Unlock()
	poke(c.poked)
}

// later looks again after a while, for garbage that cannot go yet.
func (c *collector) later(d time.Duration) {
	c.keepDead()
	time.AfterFunc(d, c.look)
}

// noRoom says that the disk is full.
func (c *collector) noRoom() {
	poke(c.now)
	c.garbage()
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it is known already
	}
}

// takeDead reports whether there is garbage, and forgets it.
func (c *collector) takeDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	dead := c.dead
	c.dead = false
	return dead
}

// opening keeps an image from being removed between its commit and the moment its reader has
// it open. Call the function that it returns then.
func (c *collector) opening(name string) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[name] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, name)
	}
}

func (c *collector) isOpening(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, open := c.open[name]
	return open
}

// wait waits for a while, or until there is no time. It reports whether the mount goes on.
func (c *collector) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-c.now:
		return true
	case <-c.quit:
		return false
	}
}

// collect removes what the policy does not keep and frees what is no longer needed, in the
// background, until the mount ends.
func (f *filesystem) collect() {
	c := f.collector
	for {
		select {
		case <-c.poked:
		case <-c.quit:
			return
		}
		if !c.wait(collectDelay) {
			return
		}
		start := time.Now()
		f.prune()
		if c.takeDead() {
			f.free()
		}
		if !c.wait((collectShare - 1) * time.Since(start)) {
			return
		}
	}
}

// prune removes the images that the policy does not keep.
func (f *filesystem) prune() {
	keep := f.collector.keep
	keep.Spare = f.spares // and what has a template
	rep, err := f.store.Prune(f.ctx, keep)
	f.removed(&rep, "")
	switch {
	case f.ctx.Err() != nil:
	case err != nil:
		f.logf("removing old images: %v", err)
	case rep.Over > 0:
		f.logf("the store takes %d bytes more than it should, but nothing else may be removed: what was renamed and the newest image stay", rep.Over)
	}
}

// free gives the space of what nobody needs back.
func (f *filesystem) free() {
	wait, err := f.store.GCWait(f.ctx)
	if wait > 0 {
		f.collector.later(wait)
		return
	}
	defer f.settler.storing()() // it gives way to us too
	var rep store.GCReport
	if err == nil {
		rep, err = f.store.GC(f.ctx)
	}
	switch {
	case f.ctx.Err() != nil:
	case err != nil:
		f.logf("freeing space in the store: %v", err)
		f.collector.keepDead()
	case rep.Freed > 0:
		f.logf("freed %d bytes in the store", rep.Freed)
	}
	if rep.Pending > 0 { // of a bucket: to be removed when the grace time is over
		f.collector.later(pendingDelay)
	}
}

// keepDead remembers garbage that could not be freed for the next time.
func (c *collector) keepDead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}
