package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
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
		if err := os.WriteFile(filepath.Join(dir, packsName, packs[i].Name()), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w, err := newRunWriter(filepath.Join(dir, indexName), packs, n)
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

// madeStore makes a store whose index has runs of these lengths, and no data.
func madeStore(t testing.TB, step int, lengths ...int) (dir string, keys []uint64) {
	t.Helper()
	dir = t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, n := range lengths {
		keys = append(keys, madeRun(t, dir, n, step)...)
	}
	rnd := rand.New(rand.NewPCG(1, 8))
	rnd.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return dir, keys
}

// TestIndexReads counts what lookups read: one block for a chunk that is there, none for one
// that is not, but for a few in ten thousand.
func TestIndexReads(t *testing.T) {
	dir, keys := madeStore(t, 1, 140_000, 41_000, 13_000, 4200, 1400, 400)
	s := open(t, dir, Options{})
	if n := len(s.ix.runs); n != 6 {
		t.Fatalf("%d runs", n)
	}
	for _, k := range keys {
		h := madeHash(k)
		if _, ok, err := s.ix.find(&h); err != nil || !ok {
			t.Fatalf("%s: %v, %v", h, ok, err)
		}
	}
	hits := s.ix.reads.Load()
	rnd := rand.New(rand.NewPCG(2, 2))
	for range keys {
		h := madeHash(rnd.Uint64())
		if known, err := s.ix.reuse(&h); known != nil || err != nil {
			t.Fatalf("%s: %v, %v", h, known, err)
		}
	}
	n, misses := float64(len(keys)), s.ix.reads.Load()-hits
	perEntry := float64(s.ix.memory()) / n
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

// TestLookupsDuringMerge looks chunks up while the runs they are in are replaced, without a
// lock: what stood in the index before is found at any moment.
func TestLookupsDuringMerge(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	var hashes []chunk.Hash
	add := func(seed uint64) {
		chunks := testImage(seed, 6)
		ingest(t, s, fmt.Sprint(seed), chunks)
		for _, c := range chunks {
			if !chunk.AllZero(c) {
				hashes = append(hashes, chunk.Sum(c))
			}
		}
	}
	for seed := range uint64(10) {
		add(seed)
	}
	seen := slices.Clone(hashes)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				h := &seen[i%len(seen)]
				p, err := s.ix.reuse(h)
				if _, found, ferr := s.ix.find(h); err != nil || ferr != nil || p == nil || !found {
					t.Errorf("chunk %s: %v %v, %v %v", h, p, err, found, ferr)
					return
				}
			}
		}()
	}
	for i := range uint64(10) {
		add(100 + i)
		s.maint.Lock()
		if err := s.flushIndex(i%2 == 0); err != nil {
			t.Error(err)
		}
		s.maint.Unlock()
	}
	close(stop)
	wg.Wait()
	wantClean(t, s)
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

// TestIndexChangesDuringRead replaces the run that a lookup is reading: it finds the chunk
// all the same, and marks it where a GC that began meanwhile looks. It would hang if the lock
// were held.
func TestIndexChangesDuringRead(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for seed := range uint64(12) {
		chunks := testImage(seed/2, 10)
		ingest(t, s, fmt.Sprint(seed), chunks)
		h := chunk.Sum(chunks[slices.IndexFunc(chunks, func(c []byte) bool { return !chunk.AllZero(c) })])
		flush := func() {
			s.maint.Lock()
			defer s.maint.Unlock()
			if err := s.flushIndex(true); err != nil {
				t.Fatal(err)
			}
		}
		flush()
		ingest(t, s, fmt.Sprint(seed, " more"), testImage(seed+50, 10)) // so that there is something to merge
		old := s.ix.runs[0]
		old.f = &hookFile{old.f, seed%2 == 0, func() {
			flush()
			s.ix.mu.Lock()
			s.ix.marks = newMarks(s.ix.runs)
			s.ix.mu.Unlock()
		}}
		if p, err := s.ix.reuse(&h); p == nil || err != nil {
			t.Fatalf("round %d: %v, %v", seed, p, err)
		}
		if len(s.ix.runs) != 1 || s.ix.runs[0] == old {
			t.Fatalf("round %d: the run was not replaced", seed)
		}
		pos, _, ok, err := s.ix.runs[0].find(&h, &s.ix.reads)
		if !ok || err != nil || !s.ix.marks.alive[s.ix.runs[0]].has(pos) {
			t.Errorf("round %d: the chunk is not marked: %v, %v", seed, ok, err)
		}
		s.ix.marks = nil
	}
	wantClean(t, s)
}

// TestMemoryGivenBack: chunks that were flushed are no longer in memory, those that came
// meanwhile are.
func TestMemoryGivenBack(t *testing.T) {
	x := newIndex("")
	old, open := &pack.Pack{ID: disk.ID{1}}, &pack.Pack{ID: disk.ID{2}}
	x.fresh[old] = struct{}{}
	for i := range uint64(1000) {
		x.added(old, []pack.Entry{{Hash: madeHash(i), Raw: 1}})
	}
	ents, packs := x.flushable()
	if len(ents) != 1000 || !slices.Equal(packs, []*pack.Pack{old}) {
		t.Fatalf("%d chunks of %d packs", len(ents), len(packs))
	}
	x.added(open, []pack.Entry{{Hash: madeHash(5), Raw: 1}}) // stored again while the run is written
	x.added(open, []pack.Entry{{Hash: madeHash(2000), Raw: 1}})
	x.flushed(&run{packs: packs})
	if len(x.mem) != 2 || len(x.fresh) != 0 || x.mem[madeHash(5)].P != open || x.mem[madeHash(2000)].P != open {
		t.Errorf("%d chunks and %d packs are left", len(x.mem), len(x.fresh))
	}
}

// TestCoveredRuns: of runs that a crash left beside what they were merged into, the merged
// one stays.
func TestCoveredRuns(t *testing.T) {
	dir, packs := twoImages(t)
	s := open(t, dir, Options{})
	s.maint.Lock()
	err := s.flushIndex(true)
	s.maint.Unlock()
	if err != nil || len(s.ix.runs) != 1 {
		t.Fatalf("%d runs: %v", len(s.ix.runs), err)
	}
	part := s.packs[packID(packs[0])]
	info, err := s.readFooter(part)
	if err != nil {
		t.Fatal(err)
	}
	var ents []memEntry
	for _, e := range info.Entries {
		ents = append(ents, memEntry{e.Hash, pack.Loc{P: part, Off: e.Off, Stored: e.Stored, Raw: e.Raw, Codec: e.Codec}})
	}
	for range 2 { // equal ones cover each other: one of them must stay at first
		r, err := s.ix.writeRun(ents, []*pack.Pack{part})
		if err != nil {
			t.Fatal(err)
		}
		r.f.Close()
	}
	merged := s.ix.runs[0].path
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, dir, indexName)); n != 3 {
		t.Fatalf("%d runs", n)
	}
	s = open(t, dir, Options{})
	if left := files(t, dir, indexName); !slices.Equal(left, []string{merged}) {
		t.Errorf("left are %q, want %q", left, merged)
	}
	wantImage(t, s, "a", testImage(1, 100))
	wantClean(t, s)
}

// TestIndexFromPacks makes the index again from the packs alone: it is the same, entry by
// entry.
func TestIndexFromPacks(t *testing.T) {
	dir, _ := twoImages(t)
	list := func() (all []byte) {
		s := open(t, dir, Options{})
		s.maint.Lock()
		err := s.flushIndex(true)
		s.maint.Unlock()
		if err != nil || len(s.ix.runs) != 1 || len(s.ix.mem) != 0 {
			t.Fatalf("%d runs, %d chunks in memory: %v", len(s.ix.runs), len(s.ix.mem), err)
		}
		it := s.ix.runs[0].iter()
		for {
			more, err := it.next()
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
			all = append(all, it.hash[:]...)
			all = append(all, it.loc.P.ID[:]...)
			all = binary.LittleEndian.AppendUint32(all, it.loc.Off)
			all = binary.LittleEndian.AppendUint32(all, it.loc.Stored)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return all
	}
	want := list()
	for _, broken := range []func(string) error{os.Remove, func(path string) error { return os.Truncate(path, 5000) },
		func(path string) error { return os.WriteFile(path, nil, 0o600) }} {
		var errs []error
		paths, err := filepath.Glob(filepath.Join(dir, indexName, "*"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%d runs: %v", len(paths), err)
		}
		for _, path := range paths {
			errs = append(errs, broken(path))
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(want) == 0 || !bytes.Equal(got, want) {
			t.Error("the index made from the packs differs")
		}
	}
}
