// Package pack has the format of packs, writes and seals them, and reads chunks out of them, from a
// folder or, by a cache, from wherever else they are. Which chunk is where it does not know.
package pack

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
)

// Pack is one pack file: being written, or sealed and immutable.
type Pack struct {
	ID      disk.ID
	Created int64       // Unix ns
	Size    int64       // whole file; set when sealed
	Gone    atomic.Bool // not there, or no longer
	Dropped atomic.Bool // gone because we removed it
	// Condemned packs are being rewritten by GC: what GC found dead there is dead for
	// new ingests too.
	Condemned atomic.Bool
	Sealed    atomic.Bool
	// Unfit: Settle has found that this is none of its packs, or that it cannot be read.
	Unfit atomic.Bool
	// Of packs in a bucket:
	Doomed atomic.Bool // a GC somewhere is about to remove it: nothing new may refer to it
	local  atomic.Bool // the whole file is in the cache

	cipher atomic.Pointer[cipher.AEAD] // see aead

	// While it is written; guarded by the Writer.
	entries []Entry
	end     int64
	writing int // WriteAt calls under way
	syncing atomic.Bool
	syncs   sync.WaitGroup // see Writer.writeBack
	full    bool           // takes no more chunks
	err     error
	file    *file
	upload  Upload  // nil in a folder
	pending []int64 // where WriteAt calls under way began
}

// Name is the name of the file.
func (p *Pack) Name() string { return p.ID.String() + disk.PackExt }

// aead is the cipher of the pack's chunks, nil without a key. It is made at the first use.
func (p *Pack) aead(sec *secret.Secrets) cipher.AEAD {
	if sec == nil {
		return nil
	}
	if a := p.cipher.Load(); a != nil {
		return *a
	}
	a := sec.Pack(p.ID)
	p.cipher.Store(&a)
	return a
}

// chunkSeal is nonce and additional data of a chunk in a pack.
type chunkSeal struct {
	nonce [12]byte
	data  [36]byte
}

func (c *chunkSeal) set(e *Entry) {
	binary.LittleEndian.PutUint32(c.nonce[:], e.Off)
	copy(c.data[:], e.Hash[:])
	binary.LittleEndian.PutUint32(c.data[32:], e.Raw|uint32(e.Codec)<<24)
}

// seal appends chunks to buf, encrypted for their places in the pack.
func (p *Pack) seal(sec *secret.Secrets, es []Entry, plain, buf []byte) []byte {
	a := p.aead(sec)
	var c chunkSeal
	for i := range es {
		n := es[i].Stored - secret.Overhead
		c.set(&es[i])
		buf = a.Seal(buf, c.nonce[:], plain[:n], c.data[:])
		plain = plain[n:]
	}
	return buf
}

// Unseal decrypts in place what was read at the place of a chunk.
func (p *Pack) Unseal(sec *secret.Secrets, e *Entry, stored []byte) ([]byte, error) {
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

// Set is a set of packs for many goroutines.
type Set struct{ m sync.Map }

// Add adds a pack.
func (s *Set) Add(p *Pack) {
	if !s.Has(p) {
		s.m.Store(p, nil)
	}
}

// Has reports whether a pack was added.
func (s *Set) Has(p *Pack) bool {
	_, ok := s.m.Load(p)
	return ok
}

// Unsettled reports whether Settle has to rewrite a pack.
func (p *Pack) Unsettled() bool {
	return p.ID.IsFast() && p.Sealed.Load() && !p.Unfit.Load() && !p.Gone.Load()
}
