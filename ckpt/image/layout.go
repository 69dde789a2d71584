package image

import (
	"fmt"

	"github.com/zeebo/blake3"
)

// RegionKind says what a region of an image is.
type RegionKind uint8

// The kinds of region.
const (
	RegionHead    RegionKind = iota // header and manifest
	RegionVMA                       // the stored pages of one VMA
	RegionSegment                   // the stored pages of one Segment
	RegionBlob                      // one Blob
)

// Region names one part of an image whose chunks are cut on their own.
type Region struct {
	Kind RegionKind
	MM   int32  // RegionVMA: index into Manifest.MMs
	VMA  int32  // RegionVMA: index into MM.VMAs
	Ref  ObjRef // RegionSegment and RegionBlob
}

// String names the region as messages do.
func (r Region) String() string {
	switch r.Kind {
	case RegionVMA:
		return fmt.Sprintf("mms[%d].vmas[%d]", r.MM, r.VMA)
	case RegionSegment:
		return fmt.Sprintf("segment %d", r.Ref)
	case RegionBlob:
		return fmt.Sprintf("blob %d", r.Ref)
	}
	return "header and manifest"
}

// Chunk is one unit of hashing, storing and sending: a run of bytes of the image.
type Chunk struct {
	Off    int64  // in the file
	Len    int    // bytes, at most Layout.ChunkSize
	Region Region // what it holds
	Start  uint64 // address of its first page, offset for segments and blobs and the head
}

// Layout says where everything of an image stands. It follows from the manifest alone.
type Layout struct {
	HeadLen, DataLen, TrailerLen int64 // bytes
	Total                        int64 // size of the whole image, bytes
	Chunks                       []Chunk
	ChunkSize                    int // no chunk is larger, bytes

	Version  uint32  // of the format
	chunks   int64   // how many there are
	extents  []int64 // file offset of every extent, in file order
	first    [][]int // number in extents of each VMA's first
	numbers  []int   // number of the chunk that each extent begins in
	segments []int   // number in extents of each segment's first
	blobs    []int64 // file offset of each blob

	blobNumbers []int // number of each blob's first chunk
}

// newLayout places everything that m describes, all but the list of chunks, which is only
// made by cut once its length has been checked. m has to be valid.
func newLayout(m *Manifest, manifestLen int, version uint32) (*Layout, error) {
	l := &Layout{HeadLen: headerLen + padded(int64(manifestLen)), ChunkSize: int(chunkSizes[version]), Version: version}
	if err := l.place(m); err != nil {
		return nil, err
	}
	l.TrailerLen = l.chunks*int64(len(Hash{})) + int64(footerLen)
	l.Total = l.HeadLen + l.DataLen + l.TrailerLen
	return l, nil
}

// place gives every extent and blob its file offset and counts chunks and bytes of data.
func (l *Layout) place(m *Manifest) error {
	l.countExtents(m)
	c := counter{size: uint64(l.ChunkSize), off: l.HeadLen}
	c.chunks = c.windows(0, uint64(l.HeadLen))
	for i := range m.MMs {
		first := make([]int, len(m.MMs[i].VMAs))
		for j := range m.MMs[i].VMAs {
			first[j] = len(l.extents)
			l.region(&c, m.MMs[i].VMAs[j].Extents)
		}
		l.first = append(l.first, first)
	}
	for i := range m.Segments {
		l.segments = append(l.segments, len(l.extents))
		l.region(&c, m.Segments[i].Extents)
	}
	for i := range m.Blobs {
		l.blobs, l.blobNumbers = append(l.blobs, c.off), append(l.blobNumbers, int(c.chunks))
		c.add(0, uint64(padded(m.Blobs[i].Len)))
	}
	if c.full {
		return bad("mms", "there are more than %d chunks of %d KiB, which is the limit", maxChunks, l.ChunkSize>>10)
	}
	l.chunks, l.DataLen = c.chunks, c.off-l.HeadLen
	return nil
}

// countExtents makes room for the offsets of all extents.
func (l *Layout) countExtents(m *Manifest) {
	n := 0
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			n += len(m.MMs[i].VMAs[j].Extents)
		}
	}
	for i := range m.Segments {
		n += len(m.Segments[i].Extents)
	}
	l.extents, l.numbers = make([]int64, 0, n), make([]int, 0, n)
	l.first = make([][]int, 0, len(m.MMs))
}

// counter runs through the data section. It stops when the image has too many chunks, so
// that nothing overflows; then full is set and off means nothing.
type counter struct {
	size   uint64 // of a window
	off    int64
	chunks int64
	full   bool
}

// region places the extents of one region, whose pages in one window share a chunk.
func (l *Layout) region(c *counter, extents []Extent) {
	var end uint64
	for i, e := range extents {
		if i > 0 && (end-1)/c.size == e.Start/c.size {
			c.chunks--
		}
		l.extents, l.numbers = append(l.extents, c.off), append(l.numbers, int(c.chunks))
		c.add(e.Start, e.Len)
		end = e.Start + e.Len
	}
}

// add places n bytes from start on.
func (c *counter) add(start, n uint64) {
	c.chunks += c.windows(start, n)
	c.full = c.full || c.chunks > maxChunks
	if c.full {
		c.chunks = 0
		return
	}
	c.off += int64(n)
}

// windows is how many aligned windows the bytes from start on touch.
func (c *counter) windows(start, n uint64) int64 {
	if n == 0 {
		return 0
	}
	return int64((start+n-1)/c.size - start/c.size + 1)
}

// cut makes the list of chunks.
func (l *Layout) cut(m *Manifest) {
	k := cutter{size: uint64(l.ChunkSize), chunks: make([]Chunk, 0, l.chunks)}
	k.run(Region{Kind: RegionHead}, 0, uint64(l.HeadLen))
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			k.extents(Region{Kind: RegionVMA, MM: int32(i), VMA: int32(j)}, m.MMs[i].VMAs[j].Extents)
		}
	}
	for i := range m.Segments {
		k.extents(Region{Kind: RegionSegment, Ref: ObjRef(i + 1)}, m.Segments[i].Extents)
	}
	for i := range m.Blobs {
		k.run(Region{Kind: RegionBlob, Ref: ObjRef(i + 1)}, 0, uint64(padded(m.Blobs[i].Len)))
	}
	l.Chunks = k.chunks
}

// cutter makes chunks in file order.
type cutter struct {
	size   uint64 // of a window
	chunks []Chunk
	off    int64
}

// extents cuts the stored pages of one region.
func (k *cutter) extents(r Region, extents []Extent) {
	begin := len(k.chunks)
	for _, e := range extents {
		start, n := e.Start, e.Len
		if len(k.chunks) > begin {
			last := &k.chunks[len(k.chunks)-1]
			if last.Start/k.size == start/k.size {
				more := min(n, k.size-start%k.size)
				last.Len += int(more)
				k.off += int64(more)
				start, n = start+more, n-more
			}
		}
		k.run(r, start, n)
	}
}

// run cuts n bytes from start on at every multiple of the window.
func (k *cutter) run(r Region, start, n uint64) {
	for n > 0 {
		size := min(n, k.size-start%k.size)
		k.chunks = append(k.chunks, Chunk{Off: k.off, Len: int(size), Region: r, Start: start})
		k.off += int64(size)
		start, n = start+size, n-size
	}
}

// Trailer makes the last part of the image from the hashes of all chunks, in the order of
// l.Chunks, and the root hash, which is the image's identity.
func (l *Layout) Trailer(hashes []Hash) (trailer []byte, root Hash, err error) {
	if len(hashes) != len(l.Chunks) {
		return nil, root, fmt.Errorf("the trailer of an image of %d chunks needs as many hashes, not %d", len(l.Chunks), len(hashes))
	}
	trailer = make([]byte, 0, l.TrailerLen)
	for i := range hashes {
		trailer = append(trailer, hashes[i][:]...)
	}
	root = rootHash(trailer)
	trailer = append(trailer, root[:]...)
	return append(trailer, endMagic...), root, nil
}

// rootHash is the root over the hashes of all chunks, one after the other.
func rootHash(hashes []byte) (root Hash) {
	h := blake3.NewDeriveKey(rootContext)
	h.Write(hashes) // a Hasher's Write returns no error
	h.Sum(root[:0])
	return root
}

// VMAOffset is the file offset of an extent of a VMA, all three counted from 0: mm is the
// index in Manifest.MMs (an ObjRef less 1). It is -1 for one that is not there.
func (l *Layout) VMAOffset(mm, vma, extent int) int64 {
	if mm < 0 || mm >= len(l.first) || vma < 0 || vma >= len(l.first[mm]) {
		return -1
	}
	end := l.lastOfMM(mm)
	if vma+1 < len(l.first[mm]) {
		end = l.first[mm][vma+1]
	}
	return l.extentOffset(l.first[mm][vma], extent, end)
}

// lastOfMM is the number of the extent after the last one of an MM.
func (l *Layout) lastOfMM(mm int) int {
	for _, next := range l.first[mm+1:] {
		if len(next) > 0 {
			return next[0]
		}
	}
	if len(l.segments) > 0 {
		return l.segments[0]
	}
	return len(l.extents)
}

// SegmentOffset is the file offset of an extent, counted from 0, of a segment, or -1.
func (l *Layout) SegmentOffset(seg ObjRef, extent int) int64 {
	if seg == 0 || int64(seg) > int64(len(l.segments)) {
		return -1
	}
	end := len(l.extents)
	if int(seg) < len(l.segments) {
		end = l.segments[seg]
	}
	return l.extentOffset(l.segments[seg-1], extent, end)
}

// extentOffset is the offset of the extent with a number counted from first.
func (l *Layout) extentOffset(first, extent, end int) int64 {
	if extent < 0 || extent >= end-first {
		return -1
	}
	return l.extents[first+extent]
}

// BlobOffset is the file offset of a blob, or -1.
func (l *Layout) BlobOffset(ref ObjRef) int64 {
	if ref == 0 || int64(ref) > int64(len(l.blobs)) {
		return -1
	}
	return l.blobs[ref-1]
}
