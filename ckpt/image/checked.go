package image

import (
	"fmt"
	"io"
	"sync"
)

// OpenChecked is Open for who uses parts of an image without a Verify of all of it: each chunk is compared with its
// hash whenever something is read of it, and one that is not what it was is a CorruptError of ReadAt, Blob and
// the BlobReader. That the hashes are those of the root hash is not looked at. It costs the
// same whatever the size of the data; Layout.Chunks is empty, see Reader.ChunkAt.
func OpenChecked(r io.ReaderAt, size int64) (*Reader, error) {
	o, err := open(r, size)
	if err != nil {
		return nil, err
	}
	c := &checked{r: o, hashes: map[int64][]byte{}}
	return &Reader{Manifest: o.Manifest, Layout: o.Layout, root: o.root, r: c}, nil
}

// checked reads whole chunks and verifies them.
type checked struct {
	r *Reader // does not verify

	mu     sync.Mutex
	hashes map[int64][]byte // those that were read, by number / hashesLen
	last   []byte           // the content of the chunk that was read in part last: who reads on needs it again
	at     int              // its number
}

// hashesLen is how many hashes are read at a time.
const hashesLen = 512

// ReadAt reads bytes of the image. Those behind the last chunk are the trailer.
func (c *checked) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		i, k := c.r.ChunkAt(off + int64(n))
		if i < 0 {
			m, err := c.r.r.ReadAt(p[n:], off+int64(n))
			return n + m, err
		}
		m, err := c.read(p[n:], off+int64(n), i, k)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// read reads from chunk k, number i, on: whole chunks into p, or a part of one.
func (c *checked) read(p []byte, off int64, i int, k Chunk) (int, error) {
	var whole []Chunk
	size := 0
	for next := k; off == k.Off && size+next.Len <= len(p); {
		whole = append(whole, next)
		size += next.Len
		n, more := c.r.ChunkAt(off + int64(size))
		if n < 0 {
			break
		}
		next = more
	}
	if len(whole) > 0 {
		return size, c.fill(p[:size], i, whole)
	}
	c.mu.Lock()
	b, at := c.last, c.at
	c.mu.Unlock()
	if b == nil || at != i {
		b = make([]byte, k.Len)
		if err := c.fill(b, i, []Chunk{k}); err != nil {
			return 0, err
		}
		c.mu.Lock()
		c.last, c.at = b, i
		c.mu.Unlock()
	}
	return copy(p, b[off-k.Off:]), nil
}

// fill reads chunks that stand one after the other, from number i on, and compares them.
func (c *checked) fill(b []byte, i int, chunks []Chunk) error {
	if err := readFull(c.r.r, b, chunks[0].Off, "the data"); err != nil {
		return err
	}
	for n, k := range chunks {
		want, err := c.hash(i + n)
		if err != nil {
			return err
		}
		if HashOf(b[:k.Len]) != want {
			return &CorruptError{Chunk: i + n, Off: k.Off, What: fmt.Sprintf("chunk %d (%v, from %#x) does not have its hash", i+n, k.Region, k.Start)}
		}
		b = b[k.Len:]
	}
	return nil
}

// hash returns the hash of a chunk.
func (c *checked) hash(i int) (h Hash, err error) {
	part := int64(i / hashesLen)
	c.mu.Lock()
	b := c.hashes[part]
	c.mu.Unlock()
	if b == nil {
		l := c.r.Layout
		off := part * hashesLen * int64(len(h))
		b = make([]byte, min(hashesLen*int64(len(h)), l.TrailerLen-int64(footerLen)-off))
		if err := readFull(c.r.r, b, l.HeadLen+l.DataLen+off, "the trailer"); err != nil {
			return h, err
		}
		c.mu.Lock()
		c.hashes[part] = b
		c.mu.Unlock()
	}
	copy(h[:], b[i%hashesLen*len(h):])
	return h, nil
}
