package lazy

import (
	"math/rand/v2"
	"testing"
)

// TestMissing does at random to a missing what programs do to their memory, and compares it with one page
// of the image for each address.
func TestMissing(t *testing.T) {
	const pages, span = 400, 1200
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		want := map[uint64]int64{} // by page number: what is missing there
		var runs []run
		off := int64(7 * pageSize)
		for at := uint64(0); at < pages; {
			n := 1 + rnd.Uint64N(20)
			runs = append(runs, run{at * pageSize, n * pageSize, off})
			for i := range n {
				want[at+i] = off
				off += pageSize
			}
			at += n + rnd.Uint64N(3)
		}
		m := newMissing(runs)
		for range 300 {
			at, n := rnd.Uint64N(span), 1+rnd.Uint64N(30)
			switch rnd.IntN(4) {
			case 0:
				m.drop(at*pageSize, (at+n)*pageSize)
				for i := range n {
					delete(want, at+i)
				}
			case 1:
				from := int64(rnd.Uint64N(pages)) * pageSize
				for _, p := range m.pieces(from, from+int64(n)*pageSize) {
					m.came(p.off, p.length)
					for i := range p.length / pageSize {
						if want[p.addr/pageSize+i] != p.off+int64(i)*pageSize {
							t.Fatalf("seed %d: page %d is a piece at %d", seed, p.addr/pageSize+i, p.off)
						}
						delete(want, p.addr/pageSize+i)
					}
				}
			case 2:
				to := at + 30 + rnd.Uint64N(span-at)
				m.lose(m.take(to*pageSize, (to+n)*pageSize))
				moving := m.take(at*pageSize, (at+n)*pageSize)
				for i := range moving {
					moving[i].addr += (to - at) * pageSize
				}
				m.put(moving)
				for i := range n {
					delete(want, to+i)
					if o, ok := want[at+i]; ok {
						want[to+i] = o
					}
					delete(want, at+i)
				}
			case 3:
				m = m.clone()
			}
			compare(t, seed, m, want)
		}
	}
}

func compare(t *testing.T, seed uint64, m *missing, want map[uint64]int64) {
	t.Helper()
	for p := range uint64(3000) {
		off, due := m.at(p * pageSize)
		if o, ok := want[p]; ok != due || ok && o != off {
			t.Fatalf("seed %d: page %d: %d, %v, not %d, %v", seed, p, off, due, o, ok)
		}
	}
	if m.left != len(want) {
		t.Fatalf("seed %d: %d pages are left, not %d", seed, m.left, len(want))
	}
	n, at := 0, int64(0)
	for at = m.next(0); at >= 0; at = m.next(at + pageSize) {
		n++
	}
	if n != len(want) {
		t.Fatalf("seed %d: next finds %d pages of %d", seed, n, len(want))
	}
}
