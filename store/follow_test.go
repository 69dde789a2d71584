package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

func TestReadAtEverywhere(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	chunks := testImage(3, 200)
	want := bytes.Join(chunks, nil)
	ingest(t, s, "x", chunks)
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(uint64(g), 7))
			for range 300 {
				off := rnd.IntN(len(want) + 1000)
				p := make([]byte, 1+rnd.IntN(200<<10))
				n, err := r.ReadAt(p, int64(off))
				rest := want[min(off, len(want)):]
				if n != min(len(p), len(rest)) || !bytes.Equal(p[:n], rest[:n]) || (n < len(p)) != (err == io.EOF) {
					t.Errorf("ReadAt(%d, %d) = %d, %v", len(p), off, n, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

// TestFollow reads a running ingest from several places, in and out of its window.
func TestFollow(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20, Window: 256 << 10})
	chunks := testImage(4, 400)
	want := bytes.Join(chunks, nil)
	in, err := s.Begin(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrNotYet) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // follows closely
		defer wg.Done()
		p := make([]byte, 128<<10)
		off := int64(0)
		for {
			if err := in.Wait(context.Background(), off); err == io.EOF {
				break
			} else if err != nil {
				t.Error(err)
				return
			}
			n, err := in.ReadAt(p, off)
			if err != nil && !errors.Is(err, ErrNotYet) && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
				t.Errorf("%d bytes at %d: %v", n, off, err)
				return
			}
			off += int64(n)
		}
		if off != int64(len(want)) {
			t.Errorf("followed to %d of %d", off, len(want))
		}
	}()
	for g := range 2 { // jump about in what is there
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(uint64(g), 9))
			for range 300 {
				size := in.Size()
				if size == 0 {
					continue
				}
				off := rnd.Int64N(size)
				p := make([]byte, min(1+rnd.Int64N(100<<10), size-off))
				if n, err := in.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(n)]) {
					t.Errorf("ReadAt(%d, %d) = %d, %v", len(p), off, n, err)
					return
				}
			}
		}()
	}
	for _, c := range chunks {
		b := bytes.Clone(c)
		if err := in.Put(chunk.Sum(b), b); err != nil {
			t.Fatal(err)
		}
		clear(b) // the caller may reuse it
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n, err := in.ReadAt(make([]byte, 10), int64(len(want))-3); n != 3 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	wantImage(t, s, "x", chunks)
}
