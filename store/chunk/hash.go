// Package chunk says what a chunk is: bytes, not more than MaxLen, under their BLAKE3 hash. One
// that is all zeros is never stored.
package chunk

import (
	"bytes"
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Hash is the BLAKE3-256 of a chunk's raw bytes: its name in the store.
type Hash [32]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MaxLen is the longest chunk that Put accepts, in bytes.
const MaxLen = 1 << 20

// Sum is the hash of a chunk.
func Sum(b []byte) Hash { return blake3.Sum256(b) }

// Zeros is what an all-zero chunk is compared with, and read from. It is only read.
var Zeros [MaxLen]byte

// AllZero reports whether b holds nothing but zero bytes.
func AllZero(b []byte) bool {
	const step = 64 << 10 // of zeros, so that they stay in the cache
	for len(b) > step {
		if !bytes.Equal(b[:step], Zeros[:step]) {
			return false
		}
		b = b[step:]
	}
	return bytes.Equal(b, Zeros[:len(b)])
}
