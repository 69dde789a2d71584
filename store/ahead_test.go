package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// reading is an image that is read in some order, every other time by Gather.
type reading struct {
	t    *testing.T
	r    *Reader
	want []byte
	n    int
}

func (g *reading) at(off, n int) {
	g.t.Helper()
	n = min(n, len(g.want)-off)
	p := make([]byte, n)
	var parts Gathered
	read := g.r.ReadAt
	if g.n++; g.n%2 == 0 {
		read = func(p []byte, off int64) (int, error) { return g.r.Gather(&parts, p, off) }
	}
	m, err := read(p, int64(off))
	if g.n%2 == 0 {
		p = bytes.Join(parts.Slices, nil)
		parts.Release()
	}
	if m != n || err != nil || !bytes.Equal(p, g.want[off:off+n]) {
		g.t.Errorf("read %d of %d at %d = %d, %v", g.n, n, off, m, err)
	}
	if held, _ := g.r.ahead.Held(); held > g.r.s.o.ReadAhead+chunk.MaxLen {
		g.t.Errorf("%d bytes are held", held)
	}
}

// failures reads an image in order and returns the offsets of the chunks that are damaged.
func failures(t *testing.T, s *Store, chunks [][]byte) (bad []int64) {
	t.Helper()
	r, err := s.OpenImage("a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	off := int64(0)
	for _, c := range chunks {
		p := make([]byte, len(c))
		_, err := r.ReadAt(p, off)
		var ce *ChunkError
		switch {
		case errors.As(err, &ce) && ce.Offset == off && ce.Image == "a" && ce.Pack != "":
			bad = append(bad, off)
		case err != nil || !bytes.Equal(p, c):
			t.Errorf("offset %d: %v", off, err)
		}
		off += int64(len(c))
	}
	return bad
}

// TestDamageAhead: a damaged chunk fails the reads of that chunk and no others, however far
// ahead it was found, and is healed like any other.
func TestDamageAhead(t *testing.T) {
	dir, packs := twoImages(t)
	chunks := testImage(1, 100)
	for _, off := range []int64{pack.HeadLen + 5000, 300 << 10, 600 << 10} {
		flip(t, packs[0], off)
	}
	s := open(t, dir, Options{ReadAhead: -1})
	want := failures(t, s, chunks)
	if len(want) == 0 {
		t.Fatal("nothing is damaged")
	}
	s.Close()
	s = open(t, dir, Options{})
	if got := failures(t, s, chunks); !slices.Equal(got, want) {
		t.Errorf("damaged at %d, without read-ahead at %d", got, want)
	}
	ingest(t, s, "a again", chunks)
	if got := failures(t, s, chunks); got != nil {
		t.Errorf("still damaged at %d", got)
	}
}

// TestMovedAhead: GC moves and removes what is being read ahead.
func TestMovedAhead(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 256 << 10, ReadAhead: 1 << 20})
	for round := range 6 {
		keep, drop := testImage(uint64(2*round), 150), testImage(uint64(2*round+1), 150)
		for i := range keep {
			if i%2 == 0 {
				keep[i] = drop[i]
			}
		}
		ingest(t, s, fmt.Sprint("drop", round), drop)
		ingest(t, s, fmt.Sprint("keep", round), keep)
		var wg sync.WaitGroup
		wg.Go(func() { wantImage(t, s, fmt.Sprint("keep", round), keep) })
		wg.Go(func() {
			if err := s.Remove(fmt.Sprint("drop", round)); err != nil {
				t.Error(err)
			}
			gc(t, s)
		})
		wg.Wait()
	}
	wantClean(t, s)
}

// TestCloseAhead closes readers, and the store under them, while they are read ahead.
func TestCloseAhead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	chunks := testImage(6, 200)
	want := bytes.Join(chunks, nil)
	ingest(t, s, "x", chunks)
	for i := range 40 {
		r, err := s.OpenImage("x")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			p := make([]byte, 64<<10)
			for off := 0; off < len(want); off += len(p) {
				n, err := r.ReadAt(p, int64(off))
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
		for range i {
			r.ahead.Held() // some way into it
		}
		r.Close()
		if held, fetches := r.ahead.Held(); held != 0 || fetches != 0 {
			t.Errorf("%d goroutines, %d bytes after Close", fetches, held)
		}
		wg.Wait()
	}
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	(&reading{t: t, r: r, want: want}).at(0, 64<<10)
	(&reading{t: t, r: r, want: want}).at(64<<10, 64<<10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, fetches := r.ahead.Held(); fetches != 0 {
		t.Errorf("%d goroutines outlive the store", fetches)
	}
}
