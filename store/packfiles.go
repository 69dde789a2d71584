package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// packFile is an open file of a pack, shared by readers.
type packFile struct {
	f    *os.File
	refs int
	used uint64
}

// packFiles keeps the files of the packs that were read last open.
type packFiles struct {
	dir   string
	cache *readCache // of a bucket; nil in a folder
	mu    sync.Mutex
	m     map[*pack]*packFile
	tick  uint64
}

// maxPackFiles bounds the descriptors kept for reading.
const maxPackFiles = 64

var (
	errGone      = errors.New("the pack is gone")
	errElsewhere = errors.New("the pack is not in the cache")
	errAbandoned = errors.New("nobody needs the pack")
)

func (c *packFiles) path(p *pack) string { return filepath.Join(c.dir, p.name()) }

// acquire opens the file of a pack; release gives it back.
func (c *packFiles) acquire(p *pack) (*packFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	if pf := c.m[p]; pf != nil {
		pf.refs++
		pf.used = c.tick
		return pf, nil
	}
	switch {
	case p.gone.Load():
		return nil, errGone
	case c.cache != nil && !p.local.Load():
		return nil, errElsewhere
	}
	f, err := os.Open(c.path(p))
	if errors.Is(err, fs.ErrNotExist) && c.cache != nil {
		p.local.Store(false)
		return nil, errElsewhere
	}
	if errors.Is(err, fs.ErrNotExist) {
		p.gone.Store(true)
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	if err != nil {
		return nil, err
	}
	pf := &packFile{f: f, refs: 1, used: c.tick}
	c.m[p] = pf
	c.evict()
	return pf, nil
}

// add puts the file of a pack that is being written into the cache, held once.
func (c *packFiles) add(p *pack, f *os.File) *packFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	pf := &packFile{f: f, refs: 1, used: c.tick}
	c.m[p] = pf
	c.evict()
	return pf
}

func (c *packFiles) release(p *pack, pf *packFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pf.refs--
	if pf.refs == 0 && c.m[p] != pf {
		pf.f.Close() // read only, or synced long before
	}
}

// evict closes the file that was not used for longest, if there are too many.
func (c *packFiles) evict() {
	if len(c.m) <= maxPackFiles {
		return
	}
	var old *pack
	for p, pf := range c.m {
		if pf.refs == 0 && (old == nil || pf.used < c.m[old].used) {
			old = p
		}
	}
	if old != nil {
		c.m[old].f.Close()
		delete(c.m, old)
	}
}

// forget closes the file of a pack as soon as nobody reads it.
func (c *packFiles) forget(p *pack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pf := c.m[p]; pf != nil {
		delete(c.m, p)
		if pf.refs == 0 {
			pf.f.Close()
		}
	}
}

func (c *packFiles) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, pf := range c.m {
		delete(c.m, p)
		if pf.refs == 0 {
			pf.f.Close()
		}
	}
}

// readAt fills b from a pack.
func (c *packFiles) readAt(p *pack, b []byte, off int64) error {
	pf, err := c.acquire(p)
	if err == errElsewhere {
		return c.cache.readAt(p, b, off)
	}
	if err != nil {
		return err
	}
	defer c.release(p, pf)
	if c.cache != nil {
		c.cache.touch(p)
	}
	n, err := pf.f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%w: %d of %d bytes at %d", errCutPack, n, len(b), off)
	}
	return err
}

// drop removes a pack's file. Readers that have it open finish; others look the chunk up
// again and find where it stands now.
func (c *packFiles) drop(p *pack) error {
	p.dropped.Store(true)
	p.gone.Store(true)
	c.forget(p)
	if c.cache != nil {
		c.cache.forget(p)
	}
	if err := os.Remove(c.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
