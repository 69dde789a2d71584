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
	r, err := imagetest.Open(t, b).Checked()
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
	b[len(b)-60] ^= 1 // a hash in the trailer
	if _, err := openChecked(b); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a damaged trailer: %v", err)
	}
}

// openChecked opens what imagetest.Open would refuse.
func openChecked(b []byte) (*image.Reader, error) {
	r, err := image.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return r.Checked()
}
