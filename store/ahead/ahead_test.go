package ahead

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// memory is a Source whose packs are slices: chunks stand in them as they are.
type memory struct {
	packs  map[*pack.Pack][]byte
	where  map[chunk.Hash]pack.Loc
	leaves map[chunk.Hash][]tree.Ref
}

func (m *memory) Leaf(sp tree.Span) ([]tree.Ref, error) { return m.leaves[sp.Hash], nil }

func (m *memory) ReadChunk(h *chunk.Hash, dst []byte) error {
	l := m.where[*h]
	return m.Decode(&l, h, dst, m.packs[l.P][l.Off:l.Off+l.Stored])
}

func (m *memory) Find(h *chunk.Hash) (pack.Loc, bool, error) {
	l, ok := m.where[*h]
	return l, ok, nil
}

func (m *memory) ReadPack(p *pack.Pack, b []byte, off int64) error {
	copy(b, m.packs[p][off:])
	return nil
}

func (m *memory) Decode(_ *pack.Loc, h *chunk.Hash, dst, stored []byte) error {
	if copy(dst, stored); chunk.Sum(dst) != *h {
		return codec.ErrMismatch
	}
	return nil
}

// testImage makes an image of n chunks of up to 64 KiB, some of them zeros, with leaves of 50.
func testImage(seed uint64, n int) (*memory, List, []byte) {
	m := &memory{map[*pack.Pack][]byte{}, map[chunk.Hash]pack.Loc{}, map[chunk.Hash][]tree.Ref{}}
	rnd := rand.New(rand.NewPCG(seed, 1))
	var list List
	var all []byte
	var leaf tree.Span
	p := new(pack.Pack)
	for i := range n {
		c := make([]byte, 1+rnd.IntN(64<<10))
		ref := tree.Ref{Size: uint32(len(c)), Zero: i%9 == 3}
		if !ref.Zero {
			for k := range c {
				c[k] = byte(rnd.Uint32())
			}
			ref.Hash = chunk.Sum(c)
			m.where[ref.Hash] = pack.Loc{P: p, Off: uint32(len(m.packs[p])), Stored: uint32(len(c)), Raw: uint32(len(c))}
			if m.packs[p] = append(m.packs[p], c...); len(m.packs[p]) > 1<<20 {
				p = new(pack.Pack)
			}
		}
		if i%50 == 0 {
			leaf = tree.Span{Hash: chunk.Sum(fmt.Append(nil, "leaf", i))}
		}
		m.leaves[leaf.Hash] = append(m.leaves[leaf.Hash], ref)
		leaf.Size += int64(len(c))
		list.Size += int64(len(c))
		all = append(all, c...)
		if i%50 == 49 || i == n-1 {
			list.Spans, list.Ends = append(list.Spans, leaf), append(list.Ends, list.Size)
		}
	}
	return m, list, all
}

// reading is an image that is read in some order, every other time to gather it.
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
	var parts cache.Gathered
	to := &parts
	if g.n++; g.n%2 == 1 {
		to = nil
	}
	m, err := g.r.Read(to, p, int64(off))
	if to != nil {
		p = bytes.Join(parts.Slices, nil)
		parts.Release()
	}
	if m != n || err != nil || !bytes.Equal(p, g.want[off:off+n]) {
		g.t.Errorf("read %d of %d at %d = %d, %v", g.n, n, off, m, err)
	}
	if held, _ := g.r.Held(); held > g.r.max+chunk.MaxLen {
		g.t.Errorf("%d bytes are held", held)
	}
}

// fetched reports whether anything was read ahead, once nothing is on its way any more.
func (a *Reader) fetched() bool {
	a.running.Wait()
	return a.spent != spent{}
}

// TestReadAhead reads in many orders, and checks which of them are read ahead for.
func TestReadAhead(t *testing.T) {
	m, list, want := testImage(3, 300)
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
			r := New(m, NewPools(2), 2<<20)
			r.SetList(list)
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
	m, list, want := testImage(5, 200)
	r := New(m, NewPools(2), 1<<20)
	r.SetList(list)
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
	if held, _ := r.Held(); held != 0 {
		t.Errorf("%d bytes are held after Close", held)
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

// TestAheadAtEnd: a stream that waits for its leaf was read to the end, and beyond, before
// anybody came to the leaf.
func TestAheadAtEnd(t *testing.T) {
	m, list, _ := testImage(3, 300)
	r := New(m, NewPools(2), 8<<20)
	r.SetList(list)
	defer r.Close()
	a := r
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, next := range []int64{r.list.Size, r.list.Size + 1<<20} {
		st := &a.streams[0]
		st.blind, st.next, st.pos, st.window = true, next, next, 1<<20
		a.readLeaf(st)
		if st.blind || len(st.pieces) > 0 {
			t.Errorf("at %d of %d: blind %v, %d pieces", next, r.list.Size, st.blind, len(st.pieces))
		}
	}
}
