package fusefs

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestGathered reads images of large and of very small chunks, of which a read has more than
// one writev takes.
func TestGathered(t *testing.T) {
	for _, chunk := range []int{64 << 10, 100} {
		s, err := store.Open(t.TempDir(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		in, err := s.Begin(context.Background(), "x")
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		for i := 0; len(want) < 3<<20; i++ {
			c := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, chunk/2)
			if err := in.Put(store.Hash(image.HashOf(c)), c); err != nil {
				t.Fatal(err)
			}
			want = append(want, c...)
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		r, err := s.OpenImage("x")
		if err != nil {
			t.Fatal(err)
		}
		flat := 0
		for off := 0; off < len(want); off += 1 << 20 {
			dest := make([]byte, min(1<<20, len(want)-off))
			res, err := gather(r, dest, int64(off))
			if err != nil {
				t.Fatal(err)
			}
			if v, ok := res.(interface {
				Slices() ([][]byte, fuse.Status)
			}); ok {
				parts, _ := v.Slices()
				if len(parts) > maxSlices || !bytes.Equal(bytes.Join(parts, nil), want[off:off+len(dest)]) {
					t.Errorf("chunks of %d: the %d parts at %d are wrong", chunk, len(parts), off)
				}
			} else {
				flat++
			}
			b, st := res.Bytes(make([]byte, res.Size()))
			if !st.Ok() || res.Size() != len(dest) || !bytes.Equal(b, want[off:off+len(dest)]) {
				t.Errorf("chunks of %d: %d bytes at %d, %v, are wrong", chunk, res.Size(), off, st)
			}
			res.Done()
		}
		if small := chunk == 100; small != (flat > 0) {
			t.Errorf("chunks of %d: %d replies in one part", chunk, flat)
		}
		if res, err := gather(r, make([]byte, 10), r.Size()-5); err == nil {
			t.Errorf("beyond the end: %v", res)
		}
		if err := errors.Join(r.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := gather(r, make([]byte, 10), 0); err == nil {
			t.Error("after Close there is no error")
		}
	}
}
