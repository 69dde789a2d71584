package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/cache"
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
	if held := g.r.heldAhead(); held > g.r.s.o.ReadAhead+chunk.MaxLen {
		g.t.Errorf("%d bytes are held", held)
	}
}

func (r *Reader) heldAhead() int64 {
	r.ahead.mu.Lock()
	defer r.ahead.mu.Unlock()
	return r.ahead.held
}

// fetched reports whether anything was read ahead, once nothing is on its way any more.
func (r *Reader) fetched() bool {
	r.ahead.running.Wait()
	return r.ahead.spent != spent{}
}

// TestReadAhead reads in many orders, and checks which of them are read ahead for.
func TestReadAhead(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20, ReadAhead: 2 << 20})
	chunks := testImage(3, 300)
	want := bytes.Join(chunks, nil)
	ingest(t, s, "x", chunks)
	forward := func(n int) func(*reading) {
		return func(g *reading) {
			for off := 0; off < len(g.want); off += n {
				g.at(off, n)
			}
		}
	}
	for _, c := range []struct {
		name  string
		read  func(*reading)
		ahead bool
	}{
		{"4 KiB", forward(4 << 10), true},
		{"odd", forward(100_001), true},
		{"128 KiB", forward(128 << 10), true},
		{"1 MiB", forward(1 << 20), true},
		{"at once", forward(len(want)), true},
		{"out of order", func(g *reading) {
			const n = 128 << 10
			for off := 0; off < len(g.want)-3*n; off += 3 * n {
				g.at(off+2*n, n)
				g.at(off, n)
				g.at(off+n, n)
			}
		}, true},
		{"backwards", func(g *reading) {
			for off := len(g.want) - 64<<10; off >= 0; off -= 64 << 10 {
				g.at(off, 64<<10)
			}
		}, false},
		{"scattered", func(g *reading) {
			for i := range 200 {
				g.at(i*7919*4096%(len(g.want)-5000), 4096)
			}
		}, false},
		{"in several places", func(g *reading) {
			for off := 0; off < len(g.want)/aheadStreams; off += 64 << 10 {
				for k := range aheadStreams {
					g.at(k*len(g.want)/aheadStreams+off, 64<<10)
				}
			}
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := s.OpenImage("x")
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c.read(&reading{t: t, r: r, want: want})
			if got := r.fetched(); got != c.ahead {
				t.Errorf("read ahead: %v", got)
			}
		})
	}
}

// TestReadAheadTogether has one Reader read by many in order, over and over.
func TestReadAheadTogether(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20, ReadAhead: 1 << 20})
	chunks := testImage(5, 200)
	want := bytes.Join(chunks, nil)
	ingest(t, s, "x", chunks)
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for k := range 6 {
		wg.Go(func() {
			g := &reading{t: t, r: r, want: want}
			for off := k % 3 * 1_000_000; off < len(want); off += (64 + 32*k) << 10 {
				g.at(off, (64+32*k)<<10)
			}
		})
	}
	wg.Wait()
	r.Close()
	if held := r.heldAhead(); held != 0 {
		t.Errorf("%d bytes are held after Close", held)
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
			r.heldAhead() // some way into it
		}
		r.Close()
		if r.ahead.fetches != 0 || r.heldAhead() != 0 {
			t.Errorf("%d goroutines, %d bytes after Close", r.ahead.fetches, r.heldAhead())
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
	if r.ahead.fetches != 0 {
		t.Errorf("%d goroutines outlive the store", r.ahead.fetches)
	}
}

// TestParallel: the longer packs take to answer, the more of them are asked at once.
func TestParallel(t *testing.T) {
	for _, c := range []struct {
		spent spent
		want  int
	}{{spent{}, 2}, {spent{reading: 1, decoding: 10}, 2}, {spent{10, 10}, 4}, {spent{1000, 10}, aheadFetches}} {
		if n := c.spent.parallel(2); n != c.want {
			t.Errorf("%+v: %d, want %d", c.spent, n, c.want)
		}
	}
}

// TestCacheShared: who asks for what is being fetched gets the same, and a value that is in
// use stays.
func TestCacheShared(t *testing.T) {
	dropped := map[int]int{}
	c := cache.New(2, func(v int) { dropped[v]++ })
	var wg sync.WaitGroup
	var mu sync.Mutex
	fetches := map[int]int{}
	for k := range 8 {
		wg.Go(func() {
			for i := range 200 {
				v := (i + k) % 4
				e, err := c.Get(&chunk.Hash{byte(v)}, func() (int, error) {
					mu.Lock()
					defer mu.Unlock()
					if fetches[v]++; fetches[v]%5 == 0 {
						return 0, context.Canceled
					}
					return v, nil
				})
				if err != nil {
					continue
				}
				if e.Val != v {
					t.Errorf("%d instead of %d", e.Val, v)
				}
				c.Done(e)
			}
		})
	}
	wg.Wait()
	c.Close()
	good := map[int]int{}
	for v, n := range fetches {
		good[v] = n - n/5
	}
	if !maps.Equal(dropped, good) {
		t.Errorf("fetched %v, dropped %v", good, dropped)
	}
}

// TestAheadAtEnd: a stream that waits for its leaf was read to the end, and beyond, before
// anybody came to the leaf.
func TestAheadAtEnd(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	chunks := testImage(3, 300)
	ingest(t, s, "x", chunks)
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, next := range []int64{r.Size(), r.Size() + 1<<20} {
		st := &a.streams[0]
		st.blind, st.next, st.pos, st.window = true, next, next, 1<<20
		a.readLeaf(st)
		if st.blind || len(st.pieces) > 0 {
			t.Errorf("at %d of %d: blind %v, %d pieces", next, r.Size(), st.blind, len(st.pieces))
		}
	}
}
