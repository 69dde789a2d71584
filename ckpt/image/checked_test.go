package image_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
)

func TestChecked(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	r, err := openChecked(b)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		off := rnd.IntN(len(b))
		p := make([]byte, 1+rnd.IntN(min(len(b)-off, 100<<10)))
		n, err := r.ReadAt(p, int64(off))
		if err != nil || n != len(p) || !bytes.Equal(p, b[off:off+n]) {
			t.Fatalf("%d bytes at %d: got %d, %v", len(p), off, n, err)
		}
	}
}

func TestCheckedFindsDamage(t *testing.T) {
	good := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	layout := imagetest.Open(t, good).Layout
	for i, c := range layout.Chunks[1:] {
		b := bytes.Clone(good)
		b[c.Off+int64(c.Len)/2] ^= 1
		r, err := openChecked(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range [][]byte{make([]byte, 1), make([]byte, c.Len)} {
			var bad *image.CorruptError
			if _, err := r.ReadAt(p, c.Off); !errors.As(err, &bad) || bad.Chunk != i+1 {
				t.Errorf("chunk %d is damaged, reading %d bytes says %v", i+1, len(p), err)
			}
		}
		if c.Off > layout.Chunks[1].Off {
			before := layout.Chunks[i]
			if _, err := r.ReadAt(make([]byte, before.Len), before.Off); err != nil {
				t.Errorf("chunk %d is damaged, reading the one before says %v", i+1, err)
			}
		}
	}
	b := bytes.Clone(good)
	b[len(b)-60] ^= 1 // the last hash in the trailer
	r, err := openChecked(b)
	if err != nil {
		t.Fatal(err)
	}
	last := layout.Chunks[len(layout.Chunks)-1]
	if _, err := r.ReadAt(make([]byte, last.Len), last.Off); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a damaged hash: %v", err)
	}
}

// TestChunkAt compares what is found for each page with the list of all chunks.
func TestChunkAt(t *testing.T) {
	for _, m := range []*image.Manifest{imagetest.Manifest(), fragmented(3000), dense(8 << 20)} {
		b := imagetest.Bytes(t, m, imagetest.Fill)
		r, err := image.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range r.Layout.Chunks {
			for off := c.Off; off < c.Off+int64(c.Len); off += 1000 {
				if n, got := r.ChunkAt(off); n != i || got != c {
					t.Fatalf("at %d: chunk %d %+v, not %d %+v", off, n, got, i, c)
				}
			}
		}
		for _, off := range []int64{-1, r.Layout.HeadLen + r.Layout.DataLen, int64(len(b))} {
			if n, _ := r.ChunkAt(off); n != -1 {
				t.Errorf("at %d there is chunk %d", off, n)
			}
		}
	}
}

// openChecked opens an image, whole or not.
func openChecked(b []byte) (*image.Reader, error) {
	return image.OpenChecked(bytes.NewReader(b), int64(len(b)))
}
