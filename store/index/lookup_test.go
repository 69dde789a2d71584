package index

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// madeHash is a hash that follows from its key, so that millions need not be kept.
func madeHash(key uint64) (h chunk.Hash) {
	binary.BigEndian.PutUint64(h[:], key)
	for i := 8; i < len(h); i += 8 { // the finalizer of splitmix64
		key += 0x9e3779b97f4a7c15
		z := (key ^ key>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(h[i:], z^z>>31)
	}
	return h
}

// madeRun writes a run of about n hashes, evenly spread, of empty packs with 2,500 chunks
// each, and returns the key of every step-th.
func madeRun(t testing.TB, dir string, n, step int) (keys []uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(uint64(n), 4))
	packs := make([]*pack.Pack, n/2500+1)
	for i := range packs {
		packs[i] = &pack.Pack{ID: disk.NewID(), Size: 64 << 20, Created: int64(1e9 - n)}
	}
	w, err := newRunWriter(dir, packs, n)
	if err != nil {
		t.Fatal(err)
	}
	gap := float64(1<<63) * 2 / float64(n)
	for k := uint64(0); w.n < n; {
		next := k + uint64(rnd.ExpFloat64()*gap)
		if next <= k { // the end of the range
			break
		}
		k = next
		h := madeHash(k)
		if err := w.add(&h, &pack.Loc{P: packs[w.n%len(packs)], Off: 40, Stored: 4096, Raw: 65536}); err != nil {
			t.Fatal(err)
		}
		if w.n%step == 0 {
			keys = append(keys, k)
		}
	}
	r, err := w.finish()
	if err != nil {
		t.Fatal(err)
	}
	r.f.Close()
	return keys
}

// madeIndex makes a folder with runs of these lengths.
func madeIndex(t testing.TB, step int, lengths ...int) (dir string, keys []uint64) {
	t.Helper()
	dir = t.TempDir()
	for _, n := range lengths {
		keys = append(keys, madeRun(t, dir, n, step)...)
	}
	rnd := rand.New(rand.NewPCG(1, 8))
	rnd.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return dir, keys
}

// openIndex opens the runs in a folder, all of whose packs are there.
func openIndex(t testing.TB, dir string) *Index {
	t.Helper()
	x := New(dir)
	packs := map[disk.ID]*pack.Pack{}
	known := func(id disk.ID, size, created int64) *pack.Pack {
		if packs[id] == nil {
			packs[id] = samePack(id, size, created)
		}
		return packs[id]
	}
	if err := cmp.Or(x.Open(known, func(m string) { t.Error(m) }), x.Order()); err != nil {
		t.Fatal(err)
	}
	return x
}

// TestIndexReads counts what lookups read: one block for a chunk that is there, none for one
// that is not, but for a few in ten thousand.
func TestIndexReads(t *testing.T) {
	dir, keys := madeIndex(t, 1, 140_000, 41_000, 13_000, 4200, 1400, 400)
	x := openIndex(t, dir)
	defer x.Close()
	if n := len(x.runs); n != 6 {
		t.Fatalf("%d runs", n)
	}
	for _, k := range keys {
		h := madeHash(k)
		if _, ok, err := x.Find(&h); err != nil || !ok {
			t.Fatalf("%s: %v, %v", h, ok, err)
		}
	}
	hits := x.reads.Load()
	rnd := rand.New(rand.NewPCG(2, 2))
	for range keys {
		h := madeHash(rnd.Uint64())
		if known, err := x.Reuse(&h); known != nil || err != nil {
			t.Fatalf("%s: %v, %v", h, known, err)
		}
	}
	n, misses := float64(len(keys)), x.reads.Load()-hits
	perEntry := float64(x.memory()) / n
	t.Logf("%.0f chunks: %.5f blocks for a hit, %.5f for a miss, %.2f bytes of memory", n, float64(hits)/n, float64(misses)/n, perEntry)
	if float64(hits) < n || float64(hits) > n*1.001 {
		t.Errorf("%d blocks were read for %.0f chunks", hits, n)
	}
	if float64(misses) > n*0.002 {
		t.Errorf("%d blocks were read for %.0f chunks that are not there", misses, n)
	}
	if perEntry > 3 {
		t.Errorf("%.2f bytes of memory for a chunk", perEntry)
	}
}

// hookFile calls hook once, before or after a block is read.
type hookFile struct {
	runFile
	before bool
	hook   func()
}

func (f *hookFile) ReadAt(b []byte, off int64) (int, error) {
	hook := f.hook
	f.hook = nil
	if hook != nil && f.before {
		hook()
	}
	n, err := f.runFile.ReadAt(b, off)
	if hook != nil && !f.before {
		hook()
	}
	return n, err
}

// enterSome enters a sealed pack of n chunks and returns their hashes.
func enterSome(x *Index, from uint64, n int) []chunk.Hash {
	p := &pack.Pack{ID: disk.NewID(), Size: 1 << 20, Created: int64(from)}
	p.Sealed.Store(true)
	var es []pack.Entry
	var hashes []chunk.Hash
	for i := range n {
		h := madeHash((from + uint64(i)) << 40)
		hashes = append(hashes, h)
		es = append(es, pack.Entry{Hash: h, Off: uint32(40 + 10*i), Stored: 10, Raw: 4096})
	}
	x.Enter(p, es)
	return hashes
}

// TestIndexChangesDuringRead replaces the run that a lookup is reading: it finds the chunk
// all the same, and marks it where a GC that began meanwhile looks. It would hang if the lock
// were held.
func TestIndexChangesDuringRead(t *testing.T) {
	x := New(t.TempDir())
	flush := func() {
		if err := x.Flush(true); err != nil {
			t.Fatal(err)
		}
	}
	for round := range uint64(12) {
		h := enterSome(x, round*1000, 200)[round*7]
		flush()
		enterSome(x, round*1000+500, 200) // so that there is something to merge
		old := x.runs[0]
		old.f = &hookFile{old.f, round%2 == 0, func() {
			flush()
			x.BeginMarks()
		}}
		if p, err := x.Reuse(&h); p == nil || err != nil {
			t.Fatalf("round %d: %v, %v", round, p, err)
		}
		if len(x.runs) != 1 || x.runs[0] == old {
			t.Fatalf("round %d: the run was not replaced", round)
		}
		pos, _, ok, err := x.runs[0].find(&h, &x.reads)
		if !ok || err != nil || !x.marks.alive[x.runs[0]].has(pos) {
			t.Errorf("round %d: the chunk is not marked: %v, %v", round, ok, err)
		}
		x.EndMarks(nil)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// TestMemoryGivenBack: chunks that were flushed are no longer in memory, those that came
// meanwhile are.
func TestMemoryGivenBack(t *testing.T) {
	x := New("")
	old, open := &pack.Pack{ID: disk.ID{1}}, &pack.Pack{ID: disk.ID{2}}
	x.fresh[old] = struct{}{}
	for i := range uint64(1000) {
		x.Added(old, []pack.Entry{{Hash: madeHash(i), Raw: 1}})
	}
	ents, packs := x.flushable()
	if len(ents) != 1000 || !slices.Equal(packs, []*pack.Pack{old}) {
		t.Fatalf("%d chunks of %d packs", len(ents), len(packs))
	}
	x.Added(open, []pack.Entry{{Hash: madeHash(5), Raw: 1}}) // stored again while the run is written
	x.Added(open, []pack.Entry{{Hash: madeHash(2000), Raw: 1}})
	x.flushed(&run{packs: packs})
	if len(x.mem) != 2 || len(x.fresh) != 0 || x.mem[madeHash(5)].P != open || x.mem[madeHash(2000)].P != open {
		t.Errorf("%d chunks and %d packs are left", len(x.mem), len(x.fresh))
	}
}

// TestCoveredRuns: of runs that a crash left beside what they were merged into, the merged
// one stays.
func TestCoveredRuns(t *testing.T) {
	dir := t.TempDir()
	x := New(dir)
	hashes := enterSome(x, 0, 300)
	if err := x.Flush(false); err != nil {
		t.Fatal(err)
	}
	part, err := os.ReadFile(x.runs[0].path)
	if err != nil {
		t.Fatal(err)
	}
	hashes = append(hashes, enterSome(x, 1000, 300)...)
	if err := x.Flush(true); err != nil || len(x.runs) != 1 {
		t.Fatalf("%d runs: %v", len(x.runs), err)
	}
	merged := x.runs[0].path
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // equal ones cover each other: one of them must stay at first
		if err := os.WriteFile(filepath.Join(dir, disk.NewID().String()+disk.RunExt), part, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x = openIndex(t, dir)
	defer x.Close()
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || !slices.Equal(left, []string{merged}) {
		t.Errorf("left are %q, want %q (%v)", left, merged, err)
	}
	for i := range hashes {
		if _, ok, err := x.Find(&hashes[i]); !ok || err != nil {
			t.Fatalf("%s: %v, %v", hashes[i], ok, err)
		}
	}
}
