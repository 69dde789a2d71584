package main

import "encoding/binary"

// What the store's format costs beside the bytes of chunks; see the package comment of store.
const (
	footerLen = 40         // in the footer of a pack, for each stored chunk
	indexLen  = 4096 / 85. // in a run of the index, for each stored chunk
	nodeHead  = 12         // of a node of the chunk list
	leafLen   = 36         // in a leaf, for each chunk of an image
	innerLen  = 40         // above the leaves, for each node below
	maxNode   = 512        // entries of a node
	splitMask = 63         // a node ends after a hash whose last four bytes have these bits clear
)

// kinds of what is stored.
const (
	kindData = iota
	kindTree
	kindTrailer
	kinds
)

// tally counts what is stored of each kind. If only some frames were compressed, tried is
// how many bytes they had, and stored what became of them.
type tally [kinds]struct{ chunks, raw, tried, stored int64 }

func (t *tally) add(o *tally, sign int64) {
	for k := range t {
		t[k].chunks += sign * o[k].chunks
		t[k].raw += sign * o[k].raw
		t[k].tried += sign * o[k].tried
		t[k].stored += sign * o[k].stored
	}
}

// extrapolate assumes that what was not tried compresses as well as what was.
func (t *tally) extrapolate() {
	for k := range t {
		if t[k].tried > 0 {
			t[k].stored = int64(float64(t[k].stored) * float64(t[k].raw) / float64(t[k].tried))
		} else {
			t[k].stored = t[k].raw
		}
		t[k].tried = t[k].raw
	}
}

// meta is what is not data: footers, index, chunk lists and trailers, bytes.
func (t *tally) meta() int64 {
	var chunks int64
	for k := range t {
		chunks += t[k].chunks
	}
	return int64(float64(chunks)*(footerLen+indexLen)) + t[kindTree].stored + t[kindTrailer].stored
}

func (t *tally) total() int64 { return t[kindData].stored + t.meta() }

// putTree stores the chunk list of an image: leaves, and nodes above them until one is left.
func putTree(refs []chunkRef, put func(node []byte) hash) {
	t := treeLevel{put: put, entryLen: leafLen}
	for i := range refs {
		t.add(&refs[i].hash, uint32(refs[i].len))
	}
	for {
		t.end()
		if len(t.above) <= 1 {
			return
		}
		t = treeLevel{put: put, entryLen: innerLen, level: t.level + 1, node: t.node[:0], above: nil, below: t.above}
		for i := range t.below {
			t.add(&t.below[i], 0)
		}
	}
}

// treeLevel makes the nodes of one level.
type treeLevel struct {
	put      func(node []byte) hash
	level    byte
	entryLen int
	node     []byte
	entries  int
	below    []hash // what the entries name, above the leaves
	above    []hash // the nodes
}

// add adds an entry; where a node ends depends on its hash.
func (t *treeLevel) add(h *hash, length uint32) {
	if t.entries == 0 {
		t.node = append(t.node[:0], make([]byte, nodeHead)...)
		t.node[0] = t.level
	}
	end := len(t.node) + t.entryLen
	t.node = binary.LittleEndian.AppendUint64(append(t.node, h[:]...), uint64(length))[:end]
	t.entries++
	split := binary.LittleEndian.Uint32(h[28:])&splitMask == 0 && (t.level == 0 || t.entries > 1)
	if split || t.entries >= maxNode {
		t.end()
	}
}

// end ends the node that is being filled.
func (t *treeLevel) end() {
	if t.entries > 0 {
		t.above = append(t.above, t.put(t.node))
		t.entries = 0
	}
}
