package pack

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/disk"
)

// cacheBlock is what is fetched of a pack at once, in bytes.
const cacheBlock = 1 << 20

// partExt ends the name of a file that holds some blocks of a pack. Which ones, only
// memory knows: the next Open removes it.
const partExt = ".part"

// Cache keeps packs of a bucket, or blocks of them, in files, up to a limit.
type Cache struct {
	files *Files
	get   func(id disk.ID, b []byte, off int64) error
	lost  func() // a pack was looked for and is gone
	limit int64

	mu    sync.Mutex
	m     map[*Pack]*cachedPack
	total int64 // bytes on disk
	tick  uint64
}

// cachedPack is a whole pack, which Files reads, or the blocks of one that are here.
type cachedPack struct {
	whole   bool
	f       *os.File // of the blocks
	have    []bool
	loading map[int]*blockLoad
	bytes   int64
	refs    int
	used    uint64
}

// blockLoad is a block on its way; whoever wants it too waits.
type blockLoad struct {
	done chan struct{}
	err  error
}

// UseCache has packs of a bucket read through a cache of limit bytes. get fills b with bytes of a
// pack, and fails with fs.ErrNotExist if it is gone; lost hears of that.
func (c *Files) UseCache(limit int64, get func(id disk.ID, b []byte, off int64) error, lost func()) {
	c.Cache = &Cache{files: c, limit: limit, get: get, lost: lost, m: map[*Pack]*cachedPack{}}
}

// adopt enters a pack whose file is whole and here.
func (c *Cache) adopt(p *Pack, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[p] != nil {
		return
	}
	c.tick++
	c.m[p] = &cachedPack{whole: true, bytes: size, used: c.tick}
	c.total += size
	p.local.Store(true)
	c.evict()
}

// AdoptOld enters the packs that an earlier process left, the oldest first.
func (c *Cache) AdoptOld(packs map[disk.ID]*Pack) error {
	ents, err := os.ReadDir(c.files.dir)
	if err != nil {
		return err
	}
	for _, e := range ents { // in order of their IDs, that is of their age
		id, ok := disk.ParseID(e.Name(), disk.PackExt)
		p := packs[id]
		info, err := e.Info()
		if ok && p != nil && err == nil && info.Size() == p.Size {
			c.adopt(p, p.Size)
			continue
		}
		if ok || filepath.Ext(e.Name()) == partExt {
			if err := os.Remove(filepath.Join(c.files.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadAt fills b from a pack that is not here as a whole.
func (c *Cache) readAt(p *Pack, b []byte, off int64) error {
	if off+int64(len(b)) > p.Size {
		return fmt.Errorf("%w: it has %d bytes, %d wanted at %d", ErrCut, p.Size, len(b), off)
	}
	e, err := c.hold(p)
	if err != nil {
		return c.Fetch(p, b, off) // no room or right to cache anything: go without
	}
	defer c.unhold(e)
	for i := int(off / cacheBlock); int64(i)*cacheBlock < off+int64(len(b)); i++ {
		if err := c.load(p, e, i); err != nil {
			var ce *cacheError
			if errors.As(err, &ce) {
				return c.Fetch(p, b, off)
			}
			return err
		}
	}
	if _, err := e.f.ReadAt(b, off); err != nil {
		return c.Fetch(p, b, off)
	}
	return nil
}

// Fetch reads past the cache.
func (c *Cache) Fetch(p *Pack, b []byte, off int64) error {
	err := c.get(p.ID, b, off)
	if errors.Is(err, fs.ErrNotExist) {
		p.Gone.Store(true)
		c.lost()
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// hold returns the blocks of a pack and keeps them from being evicted.
func (c *Cache) hold(p *Pack) (*cachedPack, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	e := c.m[p]
	if e != nil && e.whole { // its file vanished under us
		c.total -= e.bytes
		delete(c.m, p)
		e = nil
	}
	if e == nil {
		f, err := os.OpenFile(c.files.Path(p)+partExt, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, err
		}
		e = &cachedPack{f: f, have: make([]bool, (p.Size+cacheBlock-1)/cacheBlock), loading: map[int]*blockLoad{}}
		c.m[p] = e
	}
	e.refs++
	e.used = c.tick
	return e, nil
}

func (c *Cache) unhold(e *cachedPack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	c.evict()
}

// cacheError is a failure of the cache's own disk.
type cacheError struct{ error }

// load brings a block here.
func (c *Cache) load(p *Pack, e *cachedPack, i int) error {
	c.mu.Lock()
	if e.have[i] {
		c.mu.Unlock()
		return nil
	}
	l := e.loading[i]
	if l != nil {
		c.mu.Unlock()
		<-l.done
		return l.err
	}
	l = &blockLoad{done: make(chan struct{})}
	e.loading[i] = l
	c.mu.Unlock()
	off := int64(i) * cacheBlock
	b := make([]byte, min(cacheBlock, p.Size-off))
	l.err = c.Fetch(p, b, off)
	if l.err == nil {
		if _, err := e.f.WriteAt(b, off); err != nil {
			l.err = &cacheError{err}
		}
	}
	c.mu.Lock()
	delete(e.loading, i)
	if l.err == nil {
		e.have[i] = true
		e.bytes += int64(len(b))
		c.total += int64(len(b))
	}
	c.mu.Unlock()
	close(l.done)
	return l.err
}

// evict removes what was not used for longest until the limit holds. Called with mu held.
func (c *Cache) evict() {
	if c.total <= c.limit {
		return
	}
	idle := make([]*Pack, 0, len(c.m))
	for p, e := range c.m {
		if e.refs == 0 {
			idle = append(idle, p)
		}
	}
	slices.SortFunc(idle, func(a, b *Pack) int { return cmp.Compare(c.m[a].used, c.m[b].used) })
	for _, p := range idle {
		// A little more than necessary, so that not every read comes here.
		if c.total <= c.limit-c.limit/16 {
			return
		}
		c.remove(p)
	}
}

// remove takes a pack out of the cache. Called with mu held. Nothing is lost if its file
// cannot be removed: Open tries again.
func (c *Cache) remove(p *Pack) {
	e := c.m[p]
	delete(c.m, p)
	c.total -= e.bytes
	path := c.files.Path(p)
	if e.whole {
		p.local.Store(false)
		c.files.forget(p)
	} else {
		path += partExt
		_ = e.f.Close() // its blocks are all in the bucket
	}
	_ = os.Remove(path)
}

// Forget drops what is here of a pack: it is gone, or its bytes are wrong.
func (c *Cache) Forget(p *Pack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.m[p]; e != nil && e.refs == 0 {
		c.remove(p)
	}
}

// touch notes that a whole pack was read.
func (c *Cache) touch(p *Pack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.m[p]; e != nil {
		c.tick++
		e.used = c.tick
	}
}

// Close gives up what is here of packs that are not here as a whole.
func (c *Cache) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range slices.Collect(maps.Keys(c.m)) {
		if e := c.m[p]; !e.whole {
			c.remove(p)
		}
	}
}
