package secret

import "github.com/zeebo/blake3"

// Prove returns what only the holder of the key can say to a challenge, for two processes that
// have to find out whether they have the same key. It tells nothing of the key.
func (k *Key) Prove(challenge []byte) [32]byte {
	h := blake3.NewDeriveKey("ckptfs 2026-11 proof of a store key")
	h.Write(k.master[:]) // it never fails, see hash.Hash
	h.Write(challenge)
	var out [32]byte
	h.Sum(out[:0])
	return out
}
