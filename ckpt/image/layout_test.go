package image_test

import (
	"math/rand/v2"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
)

// page is one page of an image the slow way.
type page struct {
	region image.Region
	start  uint64
}

// pages lists what the data section holds, page by page.
func pages(m *image.Manifest) (all []page) {
	add := func(r image.Region, start, n uint64) {
		for p := start; p < start+n; p += image.PageSize {
			all = append(all, page{r, p})
		}
	}
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			for _, e := range m.MMs[i].VMAs[j].Extents {
				add(image.Region{Kind: image.RegionVMA, MM: int32(i), VMA: int32(j)}, e.Start, e.Len)
			}
		}
	}
	for i := range m.Segments {
		for _, e := range m.Segments[i].Extents {
			add(image.Region{Kind: image.RegionSegment, Ref: image.ObjRef(i + 1)}, e.Start, e.Len)
		}
	}
	for i, b := range m.Blobs {
		add(image.Region{Kind: image.RegionBlob, Ref: image.ObjRef(i + 1)}, 0, uint64(b.Len))
	}
	return all
}

// scatter returns random extents between low and high.
func scatter(low, high uint64, n int) (all []image.Extent) {
	for at := low; n > 0; n-- {
		at += rand.Uint64N(12) * image.PageSize // 0: it touches the one before
		size := (1 + rand.Uint64N(40)) * image.PageSize
		if at+size > high {
			break
		}
		all = append(all, image.Extent{Start: at, Len: size})
		at += size
	}
	return all
}

// The chunks of random manifests are those that the rules of the package comment give.
func TestChunks(t *testing.T) {
	for range 50 {
		m := imagetest.Manifest()
		v := &m.MMs[0].VMAs[1]
		v.Extents = scatter(v.Start, v.End, 30)
		m.Segments[0].Extents = scatter(0, 300<<10, 10)
		m.Blobs = []image.Blob{{Len: rand.Int64N(300 << 10)}, {}, {Len: 1}}
		_, l, err := image.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		left, off := pages(m), int64(0)
		var last image.Chunk
		for _, c := range l.Chunks {
			if c.Off != off || c.Len <= 0 || c.Len > image.ChunkSize {
				t.Fatalf("chunk %+v, want it at %d", c, off)
			}
			off += int64(c.Len)
			if c.Region.Kind == image.RegionHead {
				continue
			}
			if c.Region == last.Region && c.Start/image.ChunkSize == last.Start/image.ChunkSize {
				t.Errorf("chunks %+v and %+v share a window", last, c)
			}
			if c.Start != left[0].start {
				t.Fatalf("chunk %+v starts with page %+v", c, left[0])
			}
			for range c.Len / image.PageSize {
				if left[0].region != c.Region || left[0].start/image.ChunkSize != c.Start/image.ChunkSize {
					t.Fatalf("chunk %+v holds page %+v", c, left[0])
				}
				left = left[1:]
			}
			last = c
		}
		if len(left) != 0 || off != l.HeadLen+l.DataLen || l.Total != off+l.TrailerLen || l.TrailerLen != int64(32*len(l.Chunks)+40) {
			t.Fatalf("%d pages are in no chunk; layout %d %d %d %d", len(left), l.HeadLen, l.DataLen, l.TrailerLen, l.Total)
		}
	}
}

// Equal memory gives equal chunks although the file before it has changed.
func TestChunksAreStable(t *testing.T) {
	m := imagetest.Manifest()
	_, before, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	m.MMs[0].VMAs[0].Extents = nil
	_, after, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	where := make(map[uint64]int)
	for _, c := range before.Chunks {
		if c.Region.Kind == image.RegionVMA {
			where[c.Start] = c.Len
		}
	}
	for _, c := range after.Chunks {
		if c.Region.Kind == image.RegionVMA && where[c.Start] != c.Len {
			t.Errorf("chunk %+v had length %d", c, where[c.Start])
		}
	}
}

// fragmented is a manifest with n extents of one page, every second page of a mapping.
func fragmented(n int) *image.Manifest {
	m := imagetest.Manifest()
	v := &m.MMs[1].VMAs[4]
	start := v.End
	big := image.VMA{Start: start, End: start + uint64(2*n)*image.PageSize, Kind: image.VMAAnon, Prot: 3, Flags: 2}
	for i := range n {
		big.Extents = append(big.Extents, image.Extent{Start: start + uint64(2*i)*image.PageSize, Len: image.PageSize})
	}
	m.MMs[1].VMAs = append(m.MMs[1].VMAs, big)
	return m
}

// dense is a manifest with one extent of n bytes.
func dense(n uint64) *image.Manifest {
	m := imagetest.Manifest()
	start := m.MMs[1].VMAs[4].End
	m.MMs[1].VMAs = append(m.MMs[1].VMAs, image.VMA{Start: start, End: start + n, Kind: image.VMAAnon, Prot: 3, Flags: 2,
		Extents: []image.Extent{{Start: start, Len: n}}})
	return m
}

func BenchmarkEncodeFragmented100k(b *testing.B) { benchmarkEncode(b, fragmented(100_000)) }
func BenchmarkEncodeDense64G(b *testing.B)       { benchmarkEncode(b, dense(64<<30)) }

func benchmarkEncode(b *testing.B, m *image.Manifest) {
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := image.Encode(m); err != nil {
			b.Fatal(err)
		}
	}
}
