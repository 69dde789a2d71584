package index

import (
	"encoding/binary"
	"math/bits"
)

// The filter tells from memory in which slots of a block a hash may stand, so that a block
// is hardly ever read in vain. The range of keys of a block is cut into parts; the filter
// knows which slots belong to each, and for every slot two bytes of the hash that have no
// say in the order. A foreign hash meets the 5 to 11 slots of one part: it passes one time
// in 6,000 to 12,000.
const (
	filterLen   = 192 // for a block: where each part ends 16, fingerprints 2 for each slot, zero 6
	filterParts = 16
)

// key8 is the part of a hash that memory knows of the first entry of a block.
func key8(h []byte) uint64 { return binary.BigEndian.Uint64(h) }

func fingerprint(h []byte) uint16 { return binary.LittleEndian.Uint16(h[8:]) }

// partOf returns the part of the keys from lo to hi that k is in. Parts are a power of two
// wide: a division would cost more than the few empty ones at the end.
func partOf(k, lo, hi uint64) int {
	return int((k - lo) >> max(0, bits.Len64(hi-lo)-4))
}

// appendFilter appends the filter of a block of n entries, sorted, to dst. next is the key
// of the entry that follows the block.
func appendFilter(dst []byte, block *[runBlock]byte, n int, next uint64) []byte {
	var rec [filterLen]byte
	lo := key8(block[:])
	for i := range n {
		h := block[i*runEntryLen:]
		rec[partOf(key8(h), lo, next)]++
		binary.LittleEndian.PutUint16(rec[filterParts+2*i:], fingerprint(h))
	}
	for i := 1; i < filterParts; i++ {
		rec[i] += rec[i-1]
	}
	return append(dst, rec[:]...)
}

// filterSlot returns the first slot, not before from, that may hold a hash, or -1.
func filterSlot(rec []byte, part int, fp uint16, from int) int {
	if part > 0 {
		from = max(from, int(rec[part-1]))
	}
	for end := min(perBlock, int(rec[part])); from < end; from++ {
		if binary.LittleEndian.Uint16(rec[filterParts+2*from:]) == fp {
			return from
		}
	}
	return -1
}
