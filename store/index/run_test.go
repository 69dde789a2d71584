package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// writeHashes writes a run of hashes, sorted before, and opens it again.
func writeHashes(t testing.TB, hashes []chunk.Hash) *run {
	t.Helper()
	p := &pack.Pack{ID: disk.ID{7}, Size: 100, Created: 5}
	w, err := newRunWriter(t.TempDir(), []*pack.Pack{p}, len(hashes))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(hashes, func(a, b chunk.Hash) int { return bytes.Compare(a[:], b[:]) })
	for i := range hashes {
		if err := w.add(&hashes[i], &pack.Loc{P: p, Off: uint32(i), Stored: 5, Raw: 9}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.finish()
	if err != nil {
		t.Fatal(err)
	}
	r.f.Close()
	if r, err = openRun(r.path, samePack); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r
}

func samePack(id disk.ID, size, created int64) *pack.Pack {
	return &pack.Pack{ID: id, Size: size, Created: created}
}

// runSorts are hashes as they come, and as they never should.
var runSorts = []struct {
	name string
	key  func(*rand.Rand) uint64
}{
	{"even", func(r *rand.Rand) uint64 { return r.Uint64() }},
	{"one key", func(r *rand.Rand) uint64 { return 1 << 40 }},
	{"lowest key", func(r *rand.Rand) uint64 { return 0 }},
	{"highest key", func(r *rand.Rand) uint64 { return math.MaxUint64 }},
	{"seven keys", func(r *rand.Rand) uint64 { return 99 + r.Uint64N(7) }},
	{"a narrow range", func(r *rand.Rand) uint64 { return math.MaxUint64 - r.Uint64N(3000) }},
	{"two heaps", func(r *rand.Rand) uint64 { return r.Uint64N(2)<<63 | r.Uint64N(1000) }},
	{"mostly low", func(r *rand.Rand) uint64 { return r.Uint64() >> r.UintN(64) }},
}

// TestRunFinds: a hash that is in a run is always found, also where blocks begin with the
// same key, and no other is.
func TestRunFinds(t *testing.T) {
	for _, sort := range runSorts {
		for _, n := range []int{0, 1, 2, perBlock - 1, perBlock, perBlock + 1, 10 * perBlock, 5000} {
			rnd := rand.New(rand.NewPCG(uint64(n), 9))
			hashes := make([]chunk.Hash, n)
			for i := range hashes {
				hashes[i] = madeHash(rnd.Uint64())
				binary.BigEndian.PutUint64(hashes[i][:], sort.key(rnd))
			}
			r := writeHashes(t, hashes)
			var reads atomic.Uint64
			for i := range hashes {
				pos, l, ok, err := r.find(&hashes[i], &reads)
				if err != nil || !ok || pos != i || l.Off != uint32(i) || l.P != r.packs[0] {
					t.Fatalf("%s: entry %d of %d: %v at %d, %+v, %v", sort.name, i, n, ok, pos, l, err)
				}
				other := hashes[i]
				other[31] ^= 1 // only the block can tell
				if _, _, ok, err := r.find(&other, &reads); ok || err != nil {
					t.Fatalf("%s: found what is not there: %v", sort.name, err)
				}
				binary.BigEndian.PutUint64(other[:], sort.key(rnd)+uint64(i%3)-1)
				if _, _, ok, err := r.find(&other, &reads); ok || err != nil {
					t.Fatalf("%s: found what is not there: %v", sort.name, err)
				}
			}
			walk(t, r, hashes)
		}
	}
}

func walk(t *testing.T, r *run, want []chunk.Hash) {
	t.Helper()
	it := r.iter()
	for i := range want {
		if more, err := it.next(); !more || err != nil || it.hash != want[i] {
			t.Fatalf("entry %d of %d: %v", i, len(want), err)
		}
	}
	if more, err := it.next(); more || err != nil {
		t.Fatalf("no end after %d entries: %v", len(want), err)
	}
}

// TestRunDamage flips bits in every part of a run. What memory holds is checked when the run
// is opened, blocks when they are read: no chunk vanishes without an error.
func TestRunDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	hashes := make([]chunk.Hash, 10*perBlock+3)
	for i := range hashes {
		hashes[i] = madeHash(rnd.Uint64())
	}
	r := writeHashes(t, hashes)
	whole, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	tail := len(whole) - r.blocks()*runTailLen
	try := func(off int) {
		b := bytes.Clone(whole)
		b[off] ^= 1 << rnd.UintN(8)
		bad, err := readRun(bytes.NewReader(b), int64(len(b)), samePack)
		inBlock := off >= int(r.data) && off < tail
		if padding := off >= runHeadLen+runPackLen && off < int(r.data); padding || inBlock {
			if err != nil {
				t.Fatalf("byte %d: %v", off, err)
			}
		} else if !errors.Is(err, ErrRun) {
			t.Fatalf("a flipped bit in byte %d of head or tail: %v", off, err)
		}
		if !inBlock || (off-int(r.data))%runBlock >= perBlock*runEntryLen+4 {
			return
		}
		bad.f = bytesFile{bytes.NewReader(b)}
		var reads atomic.Uint64
		at := (off - int(r.data)) / runBlock * perBlock
		for i := range hashes {
			_, _, ok, err := bad.find(&hashes[i], &reads)
			hit := i >= at && i < at+perBlock
			if ok == hit || errors.Is(err, ErrRun) != hit {
				t.Fatalf("a flipped bit in byte %d, entry %d: found %v, %v", off, i, ok, err)
			}
		}
	}
	for off := range runHeadLen + runPackLen {
		try(off)
	}
	for off := tail; off < len(whole); off++ {
		try(off)
	}
	for off := runHeadLen + runPackLen; off < tail; off += 1 + rnd.IntN(500) {
		try(off)
	}
	for _, n := range []int{0, 10, runHeadLen, int(r.data), tail, tail + 8*r.blocks(), len(whole) - 1} {
		if _, err := readRun(bytes.NewReader(whole[:n]), int64(n), samePack); !errors.Is(err, ErrRun) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// TestRunTables: a filter that does not fit its blocks is found by whoever walks the run,
// Verify and merges among them, even if its checksum is right.
func TestRunTables(t *testing.T) {
	b := testRun(t, 300, 0)
	tail := len(b) - 4*runTailLen
	for _, off := range []int{tail, tail + 8*4, tail + 8*4 + filterParts, tail + 8*4 + filterLen + 20} {
		bad := bytes.Clone(b)
		bad[off] ^= 1
		fixRun(bad)
		r, err := readRun(bytes.NewReader(bad), int64(len(bad)), samePack)
		if err != nil {
			t.Fatal(err)
		}
		r.f = bytesFile{bytes.NewReader(bad)}
		it := r.iter()
		more := true
		for more && err == nil {
			more, err = it.next()
		}
		if !errors.Is(err, ErrRun) {
			t.Errorf("byte %d of the tables: %v", off-tail, err)
		}
	}
}
