package image

import (
	"slices"
	"sync"
)

// Checked returns a reader of the same image that compares each chunk with its hash whenever it
// reads from it, for who does not want to Verify the whole image before he uses a part. The
// hashes themselves are read and checked here. A chunk that is not what it was is a
// CorruptError of ReadAt, Blob and the BlobReader.
func (r *Reader) Checked() (*Reader, error) {
	hashes, err := r.readHashes()
	if err != nil {
		return nil, err
	}
	return &Reader{Manifest: r.Manifest, Layout: r.Layout, root: r.root, r: &checked{v: verification{r: r, hashes: hashes}}}, nil
}

// checked reads whole chunks and verifies them.
type checked struct {
	v verification // for its hashes

	mu   sync.Mutex
	last []byte // the content of the chunk that was read in part last: who reads on needs it again
	at   int    // its number
}

// ReadAt reads bytes of the image. Those behind the last chunk, the trailer, were checked before.
func (c *checked) ReadAt(p []byte, off int64) (n int, err error) {
	l := c.v.r.Layout
	for n < len(p) {
		i := l.ChunkAt(off + int64(n))
		if i < 0 {
			m, err := c.v.r.r.ReadAt(p[n:], off+int64(n))
			return n + m, err
		}
		m, err := c.read(p[n:], off+int64(n), i)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// read reads from chunk i on: whole chunks into p, or a part of one.
func (c *checked) read(p []byte, off int64, i int) (int, error) {
	chunks := c.v.r.Layout.Chunks
	size, to := 0, i
	for off == chunks[i].Off && to < len(chunks) && size+chunks[to].Len <= len(p) {
		size += chunks[to].Len
		to++
	}
	if to > i {
		_, err := c.v.batch(p[:size], i, to)
		if err != nil {
			return 0, err
		}
		return size, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil || c.at != i {
		c.last = slices.Grow(c.last[:0], chunks[i].Len)[:chunks[i].Len]
		if _, err := c.v.batch(c.last, i, i+1); err != nil {
			c.last = nil
			return 0, err
		}
		c.at = i
	}
	return copy(p, c.last[off-chunks[i].Off:]), nil
}

// ChunkAt is the number of the chunk that holds the byte at a file offset, or -1.
func (l *Layout) ChunkAt(off int64) int {
	if off < 0 || off >= l.HeadLen+l.DataLen {
		return -1
	}
	i, _ := slices.BinarySearchFunc(l.Chunks, off, func(c Chunk, off int64) int {
		switch {
		case c.Off+int64(c.Len) <= off:
			return -1
		case c.Off > off:
			return 1
		}
		return 0
	})
	return i
}
