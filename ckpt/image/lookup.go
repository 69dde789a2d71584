package image

import "slices"

// The list of all chunks is as long as the image is large. Who wants a few of them asks for those
// at an offset: which chunk that is follows from the extent that the offset is in.

// ChunkAt returns the chunk that holds the byte at an offset of the file, and its number, which counts all chunks
// from 0. It is -1 behind the last one.
func (r *Reader) ChunkAt(off int64) (int, Chunk) {
	l := r.Layout
	switch {
	case off < 0 || off >= l.HeadLen+l.DataLen:
		return -1, Chunk{}
	case off < l.HeadLen:
		n, c := l.windowAt(0, l.HeadLen, off)
		c.Region = Region{Kind: RegionHead}
		return n, c
	}
	if i, here := slices.BinarySearch(l.blobs, off); here || i > 0 {
		if !here {
			i--
		}
		for i+1 < len(l.blobs) && l.blobs[i+1] == off { // an empty one before it
			i++
		}
		n, c := l.windowAt(l.blobs[i], padded(r.Manifest.Blobs[i].Len), off)
		c.Region = Region{Kind: RegionBlob, Ref: ObjRef(i + 1)}
		return l.blobNumbers[i] + n, c
	}
	return r.extentChunk(off)
}

// windowAt is the chunk at off of n bytes at start that are cut from the first on, and its number among theirs.
func (l *Layout) windowAt(start, n, off int64) (int, Chunk) {
	w := (off - start) / int64(l.ChunkSize)
	at := w * int64(l.ChunkSize)
	return int(w), Chunk{Off: start + at, Len: int(min(n-at, int64(l.ChunkSize))), Start: uint64(at)}
}

// extentChunk is ChunkAt for the extents of VMAs and segments.
func (r *Reader) extentChunk(off int64) (int, Chunk) {
	l, size := r.Layout, uint64(r.Layout.ChunkSize)
	k, here := slices.BinarySearch(l.extents, off)
	if !here {
		k--
	}
	region, all, first := r.extentsAround(k)
	i := k - first
	addr := all[i].Start + uint64(off-l.extents[k])
	window := addr / size
	n := l.numbers[k] + int(window-all[i].Start/size)
	c := Chunk{Region: region}
	for ; i > 0 && (all[i-1].Start+all[i-1].Len-1)/size == window; i-- { // it begins in an extent before
	}
	c.Start = max(all[i].Start, window*size)
	c.Off = l.extents[first+i] + int64(c.Start-all[i].Start)
	for ; i < len(all) && all[i].Start < (window+1)*size; i++ {
		c.Len += int(min(all[i].Start+all[i].Len, (window+1)*size) - max(all[i].Start, window*size))
	}
	return n, c
}

// extentsAround returns the region that an extent is in, the region's extents, and the number of the first of these.
func (r *Reader) extentsAround(k int) (Region, []Extent, int) {
	l := r.Layout
	if len(l.segments) > 0 && l.segments[0] <= k {
		s := lastUpTo(l.segments, k)
		return Region{Kind: RegionSegment, Ref: ObjRef(s + 1)}, r.Manifest.Segments[s].Extents, l.segments[s]
	}
	mm := len(l.first) - 1
	for mm > 0 && (len(l.first[mm]) == 0 || l.first[mm][0] > k) {
		mm--
	}
	v := lastUpTo(l.first[mm], k)
	return Region{Kind: RegionVMA, MM: int32(mm), VMA: int32(v)}, r.Manifest.MMs[mm].VMAs[v].Extents, l.first[mm][v]
}

// lastUpTo is the index of the last number that is not more than k.
func lastUpTo(sorted []int, k int) int {
	i, _ := slices.BinarySearch(sorted, k+1)
	return i - 1
}
