// Package secret keeps keys and what a store derives from them: names of chunks that tell nothing,
// ciphers of packs and records, and checksums that only the owner of the key can make.
package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/zeebo/blake3"
)

// Overhead is how many bytes a sealed chunk or record is longer than a plain one.
const Overhead = 16

// ErrSeal says that something at rest was changed, or was sealed with another key.
var ErrSeal = errors.New("it was changed, or sealed with another key")

// Secrets is what a store derives from its key. All methods work on nil: a store without
// a key, whose chunks are named by their hash alone and not encrypted.
//
// No two seals share key and nonce: every pack has a key of its own, made of its random
// ID, and a chunk's nonce is its offset there; every writing of a record has a key made
// of a fresh random salt.
type Secrets struct {
	packs   [32]byte // master of the packs' keys
	records [32]byte // master of the records' keys
	sums    [32]byte // keys the checksums of pack footers
	check   [16]byte // what the version file says of the key
	ids     sync.Pool
}

// New derives the secrets of a key; nil has none.
func New(k *Key) *Secrets {
	if k == nil {
		return nil
	}
	x := new(Secrets)
	var ids [32]byte
	for context, out := range map[string][]byte{
		"ckptfs store 2 chunk ids":   ids[:],
		"ckptfs store 2 pack keys":   x.packs[:],
		"ckptfs store 2 record keys": x.records[:],
		"ckptfs store 2 footer sums": x.sums[:],
		"ckptfs store 2 key check":   x.check[:],
	} {
		blake3.DeriveKey(context, k.master[:], out)
	}
	x.ids.New = func() any { return newKeyed(&ids) }
	return x
}

// newKeyed returns a keyed BLAKE3; it fails only for keys of another length.
func newKeyed(key *[32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err)
	}
	return h
}

// ID turns the hash of a chunk into its name in the store. With a key nobody else can tell
// which content has which name, nor test whether the store holds something.
func (x *Secrets) ID(h chunk.Hash) chunk.Hash {
	if x == nil {
		return h
	}
	k := x.ids.Get().(*blake3.Hasher)
	k.Reset()
	k.Write(h[:])
	k.Sum(h[:0])
	x.ids.Put(k)
	return h
}

// IDOf is the name of a chunk with these bytes.
func (x *Secrets) IDOf(b []byte) chunk.Hash { return x.ID(chunk.Sum(b)) }

// Fingerprint is the line of the version file that tells which key a store has.
func (x *Secrets) Fingerprint() string {
	if x == nil {
		return ""
	}
	return hex.EncodeToString(x.check[:])
}

// Matches reports, in constant time, whether a fingerprint is that of this key.
func (x *Secrets) Matches(fingerprint string) bool {
	return hmac.Equal([]byte(fingerprint), []byte(x.Fingerprint()))
}

// Describe says in messages whether there is a key.
func (x *Secrets) Describe() string {
	if x == nil {
		return "no key"
	}
	return "a key"
}

// aead makes an AES-256-GCM out of a master key and what tells one use from another.
func aead(master *[32]byte, parts ...[]byte) cipher.AEAD {
	h := newKeyed(master)
	for _, p := range parts {
		h.Write(p)
	}
	block, err := aes.NewCipher(h.Sum(nil))
	if err != nil {
		panic(err) // only for keys of another length
	}
	g, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for ciphers of another block size
	}
	return g
}

// Pack is the cipher of one pack, nil without a key.
func (x *Secrets) Pack(id disk.ID) cipher.AEAD {
	if x == nil {
		return nil
	}
	return aead(&x.packs, id[:])
}

// SealRecord encrypts a record: salt 16, then ciphertext and tag. The ID is authenticated.
func (x *Secrets) SealRecord(id disk.ID, plain []byte) []byte {
	var salt, nonce [16]byte
	rand.Read(salt[:]) // never fails, see crypto/rand
	out := append(make([]byte, 0, len(salt)+len(plain)+Overhead), salt[:]...)
	return aead(&x.records, salt[:]).Seal(out, nonce[:12], plain, id[:])
}

func (x *Secrets) OpenRecord(id disk.ID, b []byte) ([]byte, error) {
	var nonce [16]byte
	if len(b) < len(nonce)+Overhead {
		return nil, fmt.Errorf("%d bytes: %w", len(b), ErrSeal)
	}
	plain, err := aead(&x.records, b[:16]).Open(nil, nonce[:12], b[16:], id[:])
	if err != nil {
		return nil, ErrSeal
	}
	return plain, nil
}

// NewSum is the hash for the checksums of a store's own files, keyed if it has a key.
func (x *Secrets) NewSum() *blake3.Hasher {
	if x == nil {
		return blake3.New()
	}
	return newKeyed(&x.sums)
}
