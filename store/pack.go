package store

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
)

// pack is one pack file: being written, or sealed and immutable.
type pack struct {
	id      disk.ID
	created int64       // Unix ns
	size    int64       // whole file; set when sealed
	gone    atomic.Bool // not there, or no longer
	dropped atomic.Bool // gone because we removed it
	// condemned packs are being rewritten by GC: what GC found dead there is dead for
	// new ingests too.
	condemned atomic.Bool
	sealed    atomic.Bool
	// unfit: Settle has found that this is none of its packs, or that it cannot be read.
	unfit atomic.Bool
	// Of packs in a bucket:
	doomed atomic.Bool // a GC somewhere is about to remove it: nothing new may refer to it
	local  atomic.Bool // the whole file is in the cache

	cipher atomic.Pointer[cipher.AEAD] // see aead

	// While it is written; guarded by the packWriter.
	entries []entry
	end     int64
	writing int // WriteAt calls under way
	syncing atomic.Bool
	syncs   sync.WaitGroup // see packWriter.writeBack
	full    bool           // takes no more chunks
	err     error
	file    *packFile
	upload  *bucket.Upload // nil in a folder
	pending []int64        // where WriteAt calls under way began
}

func (p *pack) name() string { return p.id.String() + disk.PackExt }

// aead is the cipher of the pack's chunks, nil without a key. It is made at the first use.
func (p *pack) aead(sec *secret.Secrets) cipher.AEAD {
	if sec == nil {
		return nil
	}
	if a := p.cipher.Load(); a != nil {
		return *a
	}
	a := sec.Pack(p.id)
	p.cipher.Store(&a)
	return a
}

// chunkSeal is nonce and additional data of a chunk in a pack.
type chunkSeal struct {
	nonce [12]byte
	data  [36]byte
}

func (c *chunkSeal) set(e *entry) {
	binary.LittleEndian.PutUint32(c.nonce[:], e.off)
	copy(c.data[:], e.hash[:])
	binary.LittleEndian.PutUint32(c.data[32:], e.raw|uint32(e.codec)<<24)
}

// seal appends chunks to buf, encrypted for their places in the pack.
func (p *pack) seal(sec *secret.Secrets, es []entry, plain, buf []byte) []byte {
	a := p.aead(sec)
	var c chunkSeal
	for i := range es {
		n := es[i].stored - secret.Overhead
		c.set(&es[i])
		buf = a.Seal(buf, c.nonce[:], plain[:n], c.data[:])
		plain = plain[n:]
	}
	return buf
}

// unseal decrypts in place what was read at the place of a chunk.
func (p *pack) unseal(sec *secret.Secrets, e *entry, stored []byte) ([]byte, error) {
	a := p.aead(sec)
	if a == nil {
		return stored, nil
	}
	var c chunkSeal
	c.set(e)
	plain, err := a.Open(stored[:0], c.nonce[:], stored, c.data[:])
	if err != nil {
		return nil, secret.ErrSeal
	}
	return plain, nil
}
