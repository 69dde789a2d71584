package pack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/ckptfs/ckptfs/store/secret"
)

// file is an open file of a pack, shared by readers.
type file struct {
	f    *os.File
	refs int
	used uint64
}

// Files keeps the files of the packs that were read last open.
type Files struct {
	dir   string
	Cache *Cache // of a bucket; nil in a folder
	mu    sync.Mutex
	m     map[*Pack]*file
	tick  uint64
}

// NewFiles makes one for the packs in a folder.
func NewFiles(dir string) *Files { return &Files{dir: dir, m: map[*Pack]*file{}} }

// maxPackFiles bounds the descriptors kept for reading.
const maxPackFiles = 64

var (
	ErrGone      = errors.New("the pack is gone")
	ErrElsewhere = errors.New("the pack is not in the cache")
	ErrAbandoned = errors.New("nobody needs the pack")
)

// Path is where the file of a pack is, if it is here.
func (c *Files) Path(p *Pack) string { return filepath.Join(c.dir, p.Name()) }

// acquire opens the file of a pack; release gives it back.
func (c *Files) acquire(p *Pack) (*file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	if pf := c.m[p]; pf != nil {
		pf.refs++
		pf.used = c.tick
		return pf, nil
	}
	switch {
	case p.Gone.Load():
		return nil, ErrGone
	case c.Cache != nil && !p.local.Load():
		return nil, ErrElsewhere
	}
	f, err := os.Open(c.Path(p))
	if errors.Is(err, fs.ErrNotExist) && c.Cache != nil {
		p.local.Store(false)
		return nil, ErrElsewhere
	}
	if errors.Is(err, fs.ErrNotExist) {
		p.Gone.Store(true)
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nil, err
	}
	pf := &file{f: f, refs: 1, used: c.tick}
	c.m[p] = pf
	c.evict()
	return pf, nil
}

// add puts the file of a pack that is being written into the cache, held once.
func (c *Files) add(p *Pack, f *os.File) *file {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	pf := &file{f: f, refs: 1, used: c.tick}
	c.m[p] = pf
	c.evict()
	return pf
}

func (c *Files) release(p *Pack, pf *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pf.refs--
	if pf.refs == 0 && c.m[p] != pf {
		pf.f.Close() // read only, or synced long before
	}
}

// evict closes the file that was not used for longest, if there are too many.
func (c *Files) evict() {
	if len(c.m) <= maxPackFiles {
		return
	}
	var old *Pack
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
func (c *Files) forget(p *Pack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pf := c.m[p]; pf != nil {
		delete(c.m, p)
		if pf.refs == 0 {
			pf.f.Close()
		}
	}
}

// Close closes every file as soon as nobody reads it.
func (c *Files) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, pf := range c.m {
		delete(c.m, p)
		if pf.refs == 0 {
			pf.f.Close()
		}
	}
}

// ReadAt fills b from a pack.
func (c *Files) ReadAt(p *Pack, b []byte, off int64) error {
	pf, err := c.acquire(p)
	if err == ErrElsewhere {
		return c.Cache.readAt(p, b, off)
	}
	if err != nil {
		return err
	}
	defer c.release(p, pf)
	if c.Cache != nil {
		c.Cache.touch(p)
	}
	n, err := pf.f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%w: %d of %d bytes at %d", ErrCut, n, len(b), off)
	}
	return err
}

// Drop removes a pack's file. Readers that have it open finish; others look the chunk up
// again and find where it stands now.
func (c *Files) Drop(p *Pack) error {
	p.Dropped.Store(true)
	p.Gone.Store(true)
	c.forget(p)
	if c.Cache != nil {
		c.Cache.Forget(p)
	}
	if err := os.Remove(c.Path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadFooter reads what a pack that is here says of itself and notes its size.
func (c *Files) ReadFooter(sec *secret.Secrets, p *Pack) (*Info, error) {
	pf, err := c.acquire(p)
	if err != nil {
		return nil, err
	}
	defer c.release(p, pf)
	st, err := pf.f.Stat()
	if err != nil {
		return nil, err
	}
	if p.Size == 0 {
		p.Size = st.Size()
	}
	info, err := Read(sec, pf.f, st.Size())
	if err == nil && info.ID != p.ID {
		err = fmt.Errorf("%w: it calls itself %s", ErrCut, info.ID)
	}
	return info, err
}
