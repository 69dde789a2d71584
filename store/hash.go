package store

import (
	"bytes"
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Hash is the BLAKE3-256 of a chunk's raw bytes: its name in the store.
type Hash [32]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MaxChunk is the longest chunk that Put accepts, in bytes.
const MaxChunk = 1 << 20

func hashOf(b []byte) Hash { return blake3.Sum256(b) }

// zeros is what an all-zero chunk is compared with, and read from. It is only read.
var zeros [MaxChunk]byte

// allZero reports whether b holds nothing but zero bytes.
func allZero(b []byte) bool {
	const step = 64 << 10 // of zeros, so that they stay in the cache
	for len(b) > step {
		if !bytes.Equal(b[:step], zeros[:step]) {
			return false
		}
		b = b[step:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
