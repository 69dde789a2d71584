package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// The chunk list of an image is a tree of nodes that are chunks themselves. A node ends
// where the hash of its last entry says so, not after a fixed number: an inserted chunk
// then changes the nodes around it and no others, and lists are deduplicated like data.
const (
	nodeMagic   = 0x4e545043 // "CPTN"
	nodeHeadLen = 12         // magic 4, level 1, zero 3, count 4
	leafLen     = 36         // hash 32, length and zero flag 4
	innerLen    = 40         // hash 32, bytes of image below 8
	maxNode     = 512        // entries
	splitMask   = 63         // so a node has 64 entries on average
	zeroFlag    = 1 << 31
	maxLevel    = 32
)

// chunkRef is one chunk of an image.
type chunkRef struct {
	hash chunk.Hash
	size uint32
	zero bool // nothing but zeros, and not stored
}

// span is one node below another, or one leaf of an image.
type span struct {
	hash chunk.Hash
	size int64 // bytes of image below it
}

// endsNode reports whether a node ends after an entry with this hash.
func endsNode(h *chunk.Hash, n int) bool {
	return n >= maxNode || binary.LittleEndian.Uint32(h[28:])&splitMask == 0
}

func nodeHead(b []byte, level, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b[:0], nodeMagic)
	b = append(b, byte(level), 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

func encodeLeaf(b []byte, refs []chunkRef) []byte {
	b = nodeHead(b, 0, len(refs))
	for i := range refs {
		size := refs[i].size
		if refs[i].zero {
			size |= zeroFlag
		}
		b = append(b, refs[i].hash[:]...)
		b = binary.LittleEndian.AppendUint32(b, size)
	}
	return b
}

func encodeInner(b []byte, level int, spans []span) []byte {
	b = nodeHead(b, level, len(spans))
	for i := range spans {
		b = append(b, spans[i].hash[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(spans[i].size))
	}
	return b
}

var errNode = errors.New("not a chunk list")

// nodeBody checks the head of a node and returns its entries.
func nodeBody(b []byte, level, entryLen int) ([]byte, error) {
	if len(b) < nodeHeadLen || binary.LittleEndian.Uint32(b) != nodeMagic || b[5]|b[6]|b[7] != 0 {
		return nil, errNode
	}
	if int(b[4]) != level {
		return nil, fmt.Errorf("%w of level %d but of %d", errNode, level, b[4])
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n == 0 || n > maxNode || len(b) != nodeHeadLen+int(n)*entryLen {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", errNode, n, len(b))
	}
	return b[nodeHeadLen:], nil
}

func decodeLeaf(b []byte) ([]chunkRef, int64, error) {
	body, err := nodeBody(b, 0, leafLen)
	if err != nil {
		return nil, 0, err
	}
	refs := make([]chunkRef, len(body)/leafLen)
	var total int64
	for i := range refs {
		rec := body[i*leafLen:]
		size := binary.LittleEndian.Uint32(rec[32:])
		refs[i] = chunkRef{hash: chunk.Hash(rec[:32]), size: size &^ zeroFlag, zero: size&zeroFlag != 0}
		if refs[i].size == 0 || refs[i].size > chunk.MaxLen {
			return nil, 0, fmt.Errorf("%w: a chunk of %d bytes", errNode, refs[i].size)
		}
		total += int64(refs[i].size)
	}
	return refs, total, nil
}

func decodeInner(b []byte, level int) ([]span, int64, error) {
	body, err := nodeBody(b, level, innerLen)
	if err != nil {
		return nil, 0, err
	}
	spans := make([]span, len(body)/innerLen)
	var total int64
	for i := range spans {
		rec := body[i*innerLen:]
		size := binary.LittleEndian.Uint64(rec[32:])
		if size == 0 || size > math.MaxInt64/(2*maxNode) {
			return nil, 0, fmt.Errorf("%w: a node of %d bytes", errNode, size)
		}
		spans[i] = span{hash: chunk.Hash(rec[:32]), size: int64(size)}
		total += int64(size)
	}
	return spans, total, nil
}

// treeBuilder grows the chunk list of an image that is being written. Its memory is the
// open leaf and 48 bytes for every closed one, that is for 64 chunks.
type treeBuilder struct {
	open  []chunkRef // entries of the leaf that is still growing
	base  int64      // offset where it begins
	size  int64      // of all
	spans []span     // closed leaves
	ends  []int64    // offset where each of them ends
	put   func(node []byte) (chunk.Hash, error)
	node  []byte
	count int64
}

// closeLeaf stores the open leaf. mu guards the builder against readers; the leaf is put
// without it.
func (t *treeBuilder) closeLeaf(mu sync.Locker) error {
	if len(t.open) == 0 {
		return nil
	}
	t.node = encodeLeaf(t.node, t.open)
	h, err := t.put(t.node)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	t.spans = append(t.spans, span{hash: h, size: t.size - t.base})
	t.ends = append(t.ends, t.size)
	t.base, t.open = t.size, t.open[:0]
	return nil
}

// root is what a record says of a tree.
type root struct {
	Hash  chunk.Hash `cbor:"1,keyasint"` // root node; zero for no bytes at all
	Level int        `cbor:"2,keyasint"` // of the root node; 0 is a leaf
	Size  int64      `cbor:"3,keyasint"` // bytes
}

// finish closes the last leaf and writes the nodes above the leaves.
func (t *treeBuilder) finish(mu sync.Locker) (root, error) {
	if err := t.closeLeaf(mu); err != nil || t.size == 0 {
		return root{}, err
	}
	level, spans := 0, t.spans
	for len(spans) > 1 {
		level++
		var up []span
		for from, i := 0, 0; i < len(spans); i++ {
			if n := i + 1 - from; i+1 < len(spans) && (n < 2 || !endsNode(&spans[i].hash, n)) {
				continue
			}
			s, err := t.putInner(level, spans[from:i+1])
			if err != nil {
				return root{}, err
			}
			up, from = append(up, s), i+1
		}
		spans = up
	}
	return root{Hash: spans[0].hash, Level: level, Size: t.size}, nil
}

func (t *treeBuilder) putInner(level int, spans []span) (span, error) {
	t.node = encodeInner(t.node, level, spans)
	h, err := t.put(t.node)
	out := span{hash: h}
	for i := range spans {
		out.size += spans[i].size
	}
	return out, err
}

// locate finds the chunk at off in refs, whose first one begins at base, and says where it
// begins. If there is none it returns the number of refs.
func locate(refs []chunkRef, base, off int64) (i int, start int64) {
	for i := range refs {
		if off < base+int64(refs[i].size) {
			return i, base
		}
		base += int64(refs[i].size)
	}
	return len(refs), base
}

// leafAt finds the leaf that holds off and says where it begins.
func leafAt(ends []int64, off int64) (i int, base int64) {
	i = sort.Search(len(ends), func(i int) bool { return off < ends[i] })
	if i > 0 && i <= len(ends) {
		base = ends[i-1]
	}
	return i, base
}
