package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
)

func gc(t testing.TB, s *Store) GCReport {
	t.Helper()
	r, err := s.GC(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func packBytes(t testing.TB, s *Store) (n int64) {
	t.Helper()
	ents, err := os.ReadDir(filepath.Join(s.dir, layout.Packs))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	if st, err := s.Stats(); err != nil || st.Stored != n {
		t.Errorf("stats say %d bytes in packs, there are %d (%v)", st.Stored, n, err)
	}
	return n
}

func TestGC(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	keep, drop, mixed := testImage(1, 200), testImage(2, 200), testImage(3, 200)
	ingest(t, s, "keep", keep)
	kept := packBytes(t, s)
	ingest(t, s, "drop", drop)
	for i := range mixed { // every third chunk is needed by two images
		if i%3 == 0 {
			mixed[i] = drop[i]
		}
	}
	ingest(t, s, "mixed", mixed)
	before := packBytes(t, s)
	if r := gc(t, s); r.Packs != 0 || r.Freed != 0 {
		t.Errorf("with nothing to do: %+v", r)
	}
	if err := s.Remove("drop"); err != nil {
		t.Fatal(err)
	}
	r := gc(t, s)
	if after := packBytes(t, s); r.Freed <= 0 || before-after != r.Freed || len(r.Kept) != 0 {
		t.Errorf("from %d to %d bytes: %+v", before, after, r)
	}
	wantImage(t, s, "keep", keep)
	wantImage(t, s, "mixed", mixed)
	wantClean(t, s)
	if err := s.Remove("mixed"); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	if after := packBytes(t, s); after > kept+kept/3 {
		t.Errorf("%d bytes left for an image of %d", after, kept)
	}
	dir := s.dir
	s.Close()
	s = open(t, dir, Options{PackSize: 1 << 20})
	wantImage(t, s, "keep", keep)
	wantClean(t, s)
	if err := s.Remove("keep"); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	if n := packBytes(t, s); n != 0 {
		t.Errorf("%d bytes left in an empty store", n)
	}
}

// TestGCKeepsReaders removes an image while it is read.
func TestGCKeepsReaders(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	chunks := testImage(1, 200)
	want := bytes.Join(chunks, nil)
	ingest(t, s, "a", chunks)
	r, err := s.OpenImage("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("a"); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("an open reader lost its image: %v", err)
	}
	r.Close()
	if _, err := r.ReadAt(got, 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	gc(t, s)
	if n := packBytes(t, s); n != 0 {
		t.Errorf("%d bytes left", n)
	}
}

// TestGCJoinsSmallPacks: an image a minute must not leave a pack each.
func TestGCJoinsSmallPacks(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for i := range uint64(20) {
		ingest(t, s, fmt.Sprint(i), testImage(i, 3))
	}
	if r := gc(t, s); r.Packs != 40 || r.Written != 2 {
		t.Errorf("%+v", r)
	}
	for i := range uint64(20) {
		wantImage(t, s, fmt.Sprint(i), testImage(i, 3))
	}
	wantClean(t, s)
}

// TestGCBesideIngest runs GC, ingests that reuse what is garbage, readers and removes all
// at once; no image that was committed may miss anything.
func TestGCBesideIngest(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 256 << 10, Window: 64 << 10})
	ctx, stop := context.WithCancel(context.Background())
	var gcs sync.WaitGroup
	gcs.Add(1)
	go func() {
		defer gcs.Done()
		for n := 0; ctx.Err() == nil; n++ {
			if _, err := s.GC(context.Background()); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			for i := range 25 {
				// Few seeds: what one removes another puts again.
				chunks := testImage(rnd.Uint64N(4), 20+rnd.IntN(20))
				name := fmt.Sprintf("%d-%d", g, i)
				in, err := s.Begin(context.Background(), name)
				if err != nil {
					t.Error(err)
					return
				}
				for _, c := range chunks {
					if err := in.Put(chunk.Sum(c), c); err != nil {
						t.Error(err)
						return
					}
				}
				if rnd.IntN(5) == 0 {
					in.Abort()
					continue
				}
				if err := in.Commit(); err != nil {
					t.Error(err)
					return
				}
				got, err := readImage(s, name)
				if err != nil || !bytes.Equal(got, bytes.Join(chunks, nil)) {
					t.Errorf("%s: %v", name, err)
					return
				}
				if err := s.Remove(name); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	stop()
	gcs.Wait()
	wantClean(t, s)
	gc(t, s)
	if n := packBytes(t, s); n != 0 {
		t.Errorf("%d bytes left in an empty store", n)
	}
}

func TestGCCancelled(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	ingest(t, s, "a", testImage(1, 50))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.GC(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantImage(t, s, "a", testImage(1, 50))
	wantClean(t, s)
}

// TestGCTwoCopies: of two copies of a chunk the index knows the newer one. When nobody needs
// the chunk and that one goes, the older one is garbage in its pack and no fault.
func TestGCTwoCopies(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	chunks := testImage(1, 100)
	twice := chunks[99]
	ingest(t, s, "all", chunks)
	ingest(t, s, "rest", chunks[:99])
	h := chunk.Sum(twice)
	l, ok, err := s.ix.Find(&h)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	s.ix.CondemnCopy(l) // so that it is stored again
	ingest(t, s, "twice", [][]byte{twice})
	s.ix.Forgive(l)
	for _, name := range []string{"all", "twice"} {
		if err := s.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	gc(t, s)
	if l.P.Gone.Load() {
		t.Fatal("the pack with the older copy went too")
	}
	wantClean(t, s)
	ingest(t, s, "all", chunks)
	wantImage(t, s, "all", chunks)
	wantClean(t, s)
}

// TestUnknownCopy loses the copy that the index knows. Verify says where another one is and
// how to get at it.
func TestUnknownCopy(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	chunks := testImage(1, 100)
	ingest(t, s, "all", chunks)
	h := chunk.Sum(chunks[99])
	old, _, err := s.ix.Find(&h)
	if err != nil {
		t.Fatal(err)
	}
	s.ix.CondemnCopy(old)                             // so that it is stored again
	in, err := s.Begin(context.Background(), "twice") // without an attachment, so it brings nothing else
	if err == nil {
		err = errors.Join(in.Put(h, chunks[99]), in.Commit())
	}
	if err != nil {
		t.Fatal(err)
	}
	s.ix.Forgive(old)
	fresh, _, err := s.ix.Find(&h)
	if err != nil || fresh.P == old.P {
		t.Fatalf("in %s and %s: %v", old.P.Name(), fresh.P.Name(), err)
	}
	s.maint.Lock()
	err = s.flushIndex(true)
	s.maint.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Remove(s.files.Path(fresh.P)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	var faults []string
	err = s.Verify(context.Background(), false, func(f string) { faults = append(faults, f) })
	if !errors.Is(err, ErrDamaged) || len(faults) != 1 || !strings.Contains(faults[0], old.P.Name()) || !strings.Contains(faults[0], `["all" "twice"]`) {
		t.Errorf("%v: %q", err, faults)
	}
	s.Close()
	if err := os.RemoveAll(filepath.Join(dir, layout.Index)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	wantImage(t, s, "all", chunks)
	wantImage(t, s, "twice", chunks[99:])
	wantClean(t, s)
}

// TestGCNodeAsData: memory of a process holds the very bytes of another image's root node.
// GC comes to it as data first and must follow it all the same.
func TestGCNodeAsData(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 256 << 10})
	chunks := testImage(1, 900) // a root above leaves
	ingest(t, s, "b", chunks)
	root := s.images["b"].rec.Data
	if root.Level == 0 {
		t.Fatal("the tree is only a leaf")
	}
	n, ok, err := s.sizeOf(&root.Hash)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	node := make([]byte, n)
	if err := s.readChunk(&root.Hash, node); err != nil {
		t.Fatal(err)
	}
	if err := s.flushIndexNow(); err != nil {
		t.Fatal(err)
	}
	s.ix.BeginMarks()
	if _, found, err := s.mark(&root.Hash, false); !found || err != nil {
		t.Fatal(found, err)
	}
	if known, _, err := s.mark(&root.Hash, true); known || err != nil {
		t.Errorf("GC would not follow the node: %v, %v", known, err)
	}
	s.ix.EndMarks(nil)
}

// flushIndexNow is flushIndex for who does not hold maint.
func (s *Store) flushIndexNow() error {
	s.maint.Lock()
	defer s.maint.Unlock()
	return s.flushIndex(false)
}
