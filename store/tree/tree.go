// Package tree lists the chunks of an image in nodes that are chunks themselves, so that two images
// that differ little share most of their lists.
package tree

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
	MaxLevel    = 32
)

// Ref is one chunk of an image.
type Ref struct {
	Hash chunk.Hash
	Size uint32
	Zero bool // nothing but zeros, and not stored
}

// Span is one node below another, or one leaf of an image.
type Span struct {
	Hash chunk.Hash
	Size int64 // bytes of image below it
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

func encodeLeaf(b []byte, refs []Ref) []byte {
	b = nodeHead(b, 0, len(refs))
	for i := range refs {
		size := refs[i].Size
		if refs[i].Zero {
			size |= zeroFlag
		}
		b = append(b, refs[i].Hash[:]...)
		b = binary.LittleEndian.AppendUint32(b, size)
	}
	return b
}

func encodeInner(b []byte, level int, spans []Span) []byte {
	b = nodeHead(b, level, len(spans))
	for i := range spans {
		b = append(b, spans[i].Hash[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(spans[i].Size))
	}
	return b
}

var ErrNode = errors.New("not a chunk list")

// nodeBody checks the head of a node and returns its entries.
func nodeBody(b []byte, level, entryLen int) ([]byte, error) {
	if len(b) < nodeHeadLen || binary.LittleEndian.Uint32(b) != nodeMagic || b[5]|b[6]|b[7] != 0 {
		return nil, ErrNode
	}
	if int(b[4]) != level {
		return nil, fmt.Errorf("%w of level %d but of %d", ErrNode, level, b[4])
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n == 0 || n > maxNode || len(b) != nodeHeadLen+int(n)*entryLen {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", ErrNode, n, len(b))
	}
	return b[nodeHeadLen:], nil
}

func DecodeLeaf(b []byte) ([]Ref, int64, error) {
	body, err := nodeBody(b, 0, leafLen)
	if err != nil {
		return nil, 0, err
	}
	refs := make([]Ref, len(body)/leafLen)
	var total int64
	for i := range refs {
		rec := body[i*leafLen:]
		size := binary.LittleEndian.Uint32(rec[32:])
		refs[i] = Ref{Hash: chunk.Hash(rec[:32]), Size: size &^ zeroFlag, Zero: size&zeroFlag != 0}
		if refs[i].Size == 0 || refs[i].Size > chunk.MaxLen {
			return nil, 0, fmt.Errorf("%w: a chunk of %d bytes", ErrNode, refs[i].Size)
		}
		total += int64(refs[i].Size)
	}
	return refs, total, nil
}

func DecodeInner(b []byte, level int) ([]Span, int64, error) {
	body, err := nodeBody(b, level, innerLen)
	if err != nil {
		return nil, 0, err
	}
	spans := make([]Span, len(body)/innerLen)
	var total int64
	for i := range spans {
		rec := body[i*innerLen:]
		size := binary.LittleEndian.Uint64(rec[32:])
		if size == 0 || size > math.MaxInt64/(2*maxNode) {
			return nil, 0, fmt.Errorf("%w: a node of %d bytes", ErrNode, size)
		}
		spans[i] = Span{Hash: chunk.Hash(rec[:32]), Size: int64(size)}
		total += int64(size)
	}
	return spans, total, nil
}

// Builder grows the chunk list of an image that is being written. Its memory is the
// open leaf and 48 bytes for every closed one, that is for 64 chunks.
type Builder struct {
	Open  []Ref   // entries of the leaf that is still growing
	Base  int64   // offset where it begins
	Size  int64   // of all
	Spans []Span  // closed leaves
	Ends  []int64 // offset where each of them ends
	Put   func(node []byte) (chunk.Hash, error)
	node  []byte
	Count int64
}

// Add appends a chunk to the open leaf and reports whether that is full. Called with the lock held
// that guards the builder.
func (t *Builder) Add(ref Ref) (full bool) {
	t.Open = append(t.Open, ref)
	t.Size += int64(ref.Size)
	t.Count++
	return endsNode(&ref.Hash, len(t.Open))
}

// CloseLeaf stores the open leaf. mu guards the builder against readers; the leaf is put
// without it.
func (t *Builder) CloseLeaf(mu sync.Locker) error {
	if len(t.Open) == 0 {
		return nil
	}
	t.node = encodeLeaf(t.node, t.Open)
	h, err := t.Put(t.node)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	t.Spans = append(t.Spans, Span{Hash: h, Size: t.Size - t.Base})
	t.Ends = append(t.Ends, t.Size)
	t.Base, t.Open = t.Size, t.Open[:0]
	return nil
}

// Root is what a record says of a tree.
type Root struct {
	Hash  chunk.Hash `cbor:"1,keyasint"` // root node; zero for no bytes at all
	Level int        `cbor:"2,keyasint"` // of the root node; 0 is a leaf
	Size  int64      `cbor:"3,keyasint"` // bytes
}

// Span is the tree as a node.
func (r *Root) Span() Span { return Span{Hash: r.Hash, Size: r.Size} }

// Finish closes the last leaf and writes the nodes above the leaves.
func (t *Builder) Finish(mu sync.Locker) (Root, error) {
	if err := t.CloseLeaf(mu); err != nil || t.Size == 0 {
		return Root{}, err
	}
	level, spans := 0, t.Spans
	for len(spans) > 1 {
		level++
		var up []Span
		for from, i := 0, 0; i < len(spans); i++ {
			if n := i + 1 - from; i+1 < len(spans) && (n < 2 || !endsNode(&spans[i].Hash, n)) {
				continue
			}
			s, err := t.putInner(level, spans[from:i+1])
			if err != nil {
				return Root{}, err
			}
			up, from = append(up, s), i+1
		}
		spans = up
	}
	return Root{Hash: spans[0].Hash, Level: level, Size: t.Size}, nil
}

func (t *Builder) putInner(level int, spans []Span) (Span, error) {
	t.node = encodeInner(t.node, level, spans)
	h, err := t.Put(t.node)
	out := Span{Hash: h}
	for i := range spans {
		out.Size += spans[i].Size
	}
	return out, err
}

// Locate finds the chunk at off in refs, whose first one begins at base, and says where it
// begins. If there is none it returns the number of refs.
func Locate(refs []Ref, base, off int64) (i int, start int64) {
	for i := range refs {
		if off < base+int64(refs[i].Size) {
			return i, base
		}
		base += int64(refs[i].Size)
	}
	return len(refs), base
}

// LeafAt finds the leaf that holds off and says where it begins.
func LeafAt(ends []int64, off int64) (i int, base int64) {
	i = sort.Search(len(ends), func(i int) bool { return off < ends[i] })
	if i > 0 && i <= len(ends) {
		base = ends[i-1]
	}
	return i, base
}
