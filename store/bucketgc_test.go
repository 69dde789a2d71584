package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// short are options under which packs are soon old enough for GC.
func short(cache string) Options {
	o := quick(cache)
	o.Grace, o.young = 3*time.Second, time.Second
	return o
}

// ripen waits until a GC sees what is there as old, and its own markers as ripe.
func ripen(o Options) { time.Sleep(o.Grace + 2500*time.Millisecond) }

// gcUntilFreed runs GC until it removed packs: on a slow machine a run may find that what it
// knows is too old to remove anything by.
func gcUntilFreed(t testing.TB, s *Store) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		rep := gc(t, s)
		if rep.Packs > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nothing is removed: %+v", rep)
		}
	}
}

func bucketPacks(t testing.TB, s *Store) (n int, bytes int64) {
	t.Helper()
	if err := s.sh.Bucket.List(t.Context(), layout.Packs+"/", "", func(o bucket.Object) { n, bytes = n+1, bytes+o.Size }); err != nil {
		t.Fatal(err)
	}
	return n, bytes
}

// TestBucketGC: two runs free what no image on any machine needs, and nothing else.
func TestBucketGC(t *testing.T) {
	loc, _ := inBucket(t)
	o := short(t.TempDir())
	a := open(t, loc, o)
	keep, drop := testImage(1, 60), randomChunks(7, 3<<20)
	ingest(t, a, "keep", keep)
	ingest(t, a, "drop", append(drop[:len(drop):len(drop)], keep[:20]...))
	o.Cache = t.TempDir()
	b := open(t, loc, o)
	r, err := b.OpenImage("drop") // another machine reads it all the time
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Remove("drop"); err != nil {
		t.Fatal(err)
	}
	_, before := bucketPacks(t, a)
	ripen(o)
	if rep := gc(t, a); rep.Packs != 0 || rep.Pending != 0 {
		t.Errorf("removed what is being read: %+v", rep)
	}
	got := make([]byte, len(drop[40]))
	if _, err := r.ReadAt(got, 40<<16); err != nil || chunk.Sum(got) != chunk.Sum(drop[40]) {
		t.Errorf("the reader lost its image: %v", err)
	}
	r.Close()
	time.Sleep(o.Grace) // the lease goes
	rep := gc(t, a)
	if rep.Packs != 0 || rep.Pending == 0 {
		t.Errorf("first run: %+v", rep)
	}
	if _, now := bucketPacks(t, a); now < before {
		t.Errorf("%d bytes before, %d after the first run", before, now)
	}
	ripen(o)
	gcUntilFreed(t, b) // any machine ends what one began
	if _, now := bucketPacks(t, a); now > before-3<<20 {
		t.Errorf("%d bytes before, %d after the second run", before, now)
	}
	for _, s := range []*Store{a, b} {
		wantImage(t, s, "keep", keep)
		wantClean(t, s)
	}
}

// rescuing is a bucket of which one machine marks what another one's ingest refers to.
type rescuing struct {
	loc    string
	o      Options
	a, b   *Store
	in     *Ingest // of b; has the first chunks
	chunks [][]byte
}

func rescue(t *testing.T, chunks, first int) *rescuing {
	t.Helper()
	r := &rescuing{chunks: testImage(3, chunks)}
	r.loc, _ = inBucket(t)
	r.o = short(t.TempDir())
	r.a = open(t, r.loc, r.o)
	ingest(t, r.a, "old", r.chunks)
	r.o.Cache = t.TempDir()
	r.b = open(t, r.loc, r.o)
	ripen(r.o)
	r.in = begin(t, r.b, "new")
	r.put(t, r.chunks[:first])
	if err := r.a.Remove("old"); err != nil {
		t.Fatal(err)
	}
	if rep := gc(t, r.a); rep.Pending == 0 {
		t.Fatalf("%+v", rep)
	}
	return r
}

func (r *rescuing) put(t *testing.T, chunks [][]byte) {
	t.Helper()
	for _, c := range chunks {
		if err := r.in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
}

// want checks that every machine has the new image.
func (r *rescuing) want(t *testing.T) {
	t.Helper()
	r.o.Cache = t.TempDir()
	for _, s := range []*Store{r.a, r.b, open(t, r.loc, r.o)} {
		wantImage(t, s, "new", r.chunks)
		wantClean(t, s)
	}
}

// TestBucketRescue: an ingest refers to packs that another machine's GC marks meanwhile.
func TestBucketRescue(t *testing.T) {
	r := rescue(t, 150, 100)
	ripen(r.o) // b's loop sees the markers and stores again what it needs
	gcUntilFreed(t, r.a)
	r.put(t, r.chunks[100:])
	if err := r.in.Commit(); err != nil {
		t.Fatal(err)
	}
	r.want(t)
}

// TestBucketRescueAtCommit: the marker comes so late that Commit is the first to see it.
func TestBucketRescueAtCommit(t *testing.T) {
	r := rescue(t, 20, 20)
	if err := r.in.Commit(); err != nil {
		t.Fatal(err)
	}
	gcUntilFreed(t, r.a)
	r.want(t)
}

// TestBucketOutOfTouch: who cannot ask what others remove does not list an image.
func TestBucketOutOfTouch(t *testing.T) {
	loc, proxy := inBucket(t)
	o := short(t.TempDir())
	o.Patience, o.attempt = 300*time.Millisecond, 100*time.Millisecond
	s := open(t, loc, o)
	chunks := testImage(1, 30)
	in, err := s.Begin(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Put(chunk.Sum(chunks[0]), chunks[0]); err != nil {
		t.Fatal(err)
	}
	proxy.Outage(true)
	time.Sleep(2 * o.Grace)
	var be *BucketError
	err = in.Commit()
	if err == nil || !errors.As(err, &be) && s.sh.InTouch() == nil {
		t.Errorf("committed, or another reason: %v", err)
	}
	proxy.Outage(false)
	ingest(t, s, "y", chunks)
	wantImage(t, s, "y", chunks)
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestBucketGCAtOnce: GCs of several machines at the same time keep what is alive.
func TestBucketGCAtOnce(t *testing.T) {
	loc, _ := inBucket(t)
	o := short(t.TempDir())
	var stores []*Store
	for i := range 3 {
		o.Cache = t.TempDir()
		s := open(t, loc, o)
		stores = append(stores, s)
		for j := range 3 { // the same chunks from all, at about the same time
			ingest(t, s, fmt.Sprintf("%d-%d", i, j), testImage(uint64(j), 60))
		}
	}
	for i, s := range stores {
		if err := s.Remove(fmt.Sprintf("%d-%d", i, i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		ripen(o)
		done := make(chan error, len(stores))
		for _, s := range stores {
			go func() {
				_, err := s.GC(context.Background())
				done <- err
			}()
		}
		for range stores {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	for i := range 3 {
		for j := range 3 {
			if i != j {
				wantImage(t, stores[j], fmt.Sprintf("%d-%d", i, j), testImage(uint64(j), 60))
			}
		}
	}
	wantClean(t, stores[0])
}

// TestBucketStaleList: GC believes no listing that does not show what is there.
func TestBucketStaleList(t *testing.T) {
	loc, srv, proxy := withServer(t)
	o := short(t.TempDir())
	s := open(t, loc, o)
	old := srv.Snapshot(t)
	chunks := testImage(1, 60)
	ingest(t, s, "a", chunks)
	rule := proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.List}, Faults: []s3test.Fault{s3test.StaleList(old)}})
	ripen(o)
	gc(t, s)
	wantImage(t, s, "a", chunks)
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if rule.Hits() == 0 {
		t.Error("no listing was old")
	}
	rule.Remove()
	ripen(o)
	gc(t, s)
	wantImage(t, s, "a", chunks)
	wantClean(t, s)
}
