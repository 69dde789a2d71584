//go:build !race

package store

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// These tests count what is allocated for each chunk. The race detector makes pools forget.

// puts returns how many allocations each of n Puts makes, those of the workers included.
// next changes a chunk before it is put.
func puts(t *testing.T, s *Store, name string, n int, next func(c []byte, i int)) float64 {
	t.Helper()
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	c := make([]byte, 64<<10)
	i := 0
	put := func() {
		next(c, i)
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
		i++
	}
	for range 1000 { // fills window, queue and pools
		put()
	}
	per := testing.AllocsPerRun(n, put)
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	return per
}

func TestIngestAllocatesNothing(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	fresh := func(c []byte, i int) { binary.LittleEndian.PutUint64(c[1000:], uint64(i)+1) }
	if n := puts(t, s, "new", 3000, fresh); n != 0 {
		t.Errorf("%v allocations for a new chunk", n)
	}
	if n := puts(t, s, "known", 3000, fresh); n != 0 {
		t.Errorf("%v allocations for a known chunk", n)
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	fresh := func(c []byte, i int) { binary.LittleEndian.PutUint64(c[1000:], uint64(i)+1) }
	puts(t, s, "x", 3000, fresh)
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, n := range []int64{4 << 10, 128 << 10} {
		p := make([]byte, n)
		off := int64(0)
		read := func() {
			if off+n > r.Size() {
				off = 0
			}
			if _, err := r.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			off += n
		}
		for range 200 {
			read()
		}
		if got := testing.AllocsPerRun(1000, read); got != 0 {
			t.Errorf("%v allocations for a read of %d bytes in order", got, n)
		}
		step := r.Size() / 1009 &^ 4095 * 311
		jump := func() {
			if _, err := r.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			off = (off + step) % (r.Size() - n)
		}
		if got := testing.AllocsPerRun(100, jump); got > 10 { // most reads need a leaf and a node
			t.Errorf("%v allocations for a read of %d bytes out of order", got, n)
		}
	}
}
