package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/fleet"

	"github.com/minio/minio-go/v7"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// TestBucketOtherCopy: a chunk is in two packs. The index keeps one copy, the GC of another
// machine the other one. Nothing is missing, and our GC spares the pack that is left.
func TestBucketOtherCopy(t *testing.T) {
	loc, srv, _ := withServer(t)
	o := short(t.TempDir())
	a := open(t, loc, o)
	o.Cache = t.TempDir()
	b := open(t, loc, o)
	chunks := testImage(1, 60)
	if err := (&victim{Store: a}).putImage("a", chunks); err != nil {
		t.Fatal(err)
	}
	first := map[string]bool{}
	list := func(fn func(bucket.Object)) {
		if err := a.sh.Bucket.List(t.Context(), layout.Packs+"/", "", fn); err != nil {
			t.Fatal(err)
		}
	}
	list(func(o bucket.Object) { first[o.Key] = true })
	b.sh.Seen.Store(fleet.Now()) // b has no reason to look what a did
	if err := (&victim{Store: b}).putImage("b", chunks); err != nil {
		t.Fatal(err)
	}
	o.Cache = t.TempDir()
	c := open(t, loc, o) // knows both copies
	removed := 0
	list(func(o bucket.Object) {
		if !first[o.Key] {
			removed++
			if err := srv.Client(t).RemoveObject(t.Context(), srv.Bucket, a.sh.Bucket.Prefix+o.Key, minio.RemoveObjectOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	if removed < 2 {
		t.Fatalf("b stored %d packs", removed)
	}
	for range 2 {
		ripen(o)
		gc(t, c)
	}
	o.Cache = t.TempDir()
	for _, s := range []*Store{c, open(t, loc, o)} {
		wantImage(t, s, "a", chunks)
		wantImage(t, s, "b", chunks)
		wantClean(t, s)
	}
}

// TestBucketWrongBytes: bytes that go on coming wrong are an error that names them, and no
// grudge is held when they come right.
func TestBucketWrongBytes(t *testing.T) {
	b := newFaultBench(t)
	v := b.victim(t, "wrong")
	s := v.machine(t)
	rule := b.proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.RangeGet}, Prefix: v.keys + "packs/",
		Faults: []s3test.Fault{s3test.FlipResponse(60)}})
	_, err := readImage(s, "base")
	var ce *ChunkError
	if !errors.As(err, &ce) || ce.Image != "base" || ce.Pack == "" || ce.Hash == (chunk.Hash{}) || !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	if rule.Hits() < 2 {
		t.Errorf("asked %d times", rule.Hits())
	}
	rule.Remove()
	wantImage(t, s, "base", v.images["base"])
	v.wantWhole(t)

	rule = b.proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.Get}, Prefix: v.keys + "images/", Faults: []s3test.Fault{s3test.FlipResponse(30)}})
	s = v.machine(t)
	var re *RecordError
	if _, err := s.GC(context.Background()); !errors.As(err, &re) {
		t.Errorf("gc with a damaged record: %v", err)
	}
	said := ""
	if err := s.Verify(context.Background(), false, func(f string) { said += f }); !errors.Is(err, ErrDamaged) || said == "" {
		t.Errorf("verify with a damaged record: %v, %q", err, said)
	}
	rule.Remove()
	time.Sleep(imagesFresh)
	wantImage(t, s, "base", v.images["base"])
	gc(t, s)
	wantClean(t, s)
}

// TestBucketStaleFolders: listings of one folder are old for a while, less than the grace
// time. Who works meanwhile may store something twice, and loses nothing.
func TestBucketStaleFolders(t *testing.T) {
	for _, folder := range []string{layout.Packs, layout.Images, fleet.Markers} {
		t.Run(folder, func(t *testing.T) {
			loc, srv, proxy := withServer(t)
			o := short(t.TempDir())
			a := open(t, loc, o)
			o.Cache = t.TempDir()
			b := open(t, loc, o)
			chunks := testImage(1, 60)
			old := srv.Snapshot(t)
			ingest(t, a, "a", chunks)
			b.sh.Seen.Store(0)
			images := map[string][][]byte{}
			if folder == fleet.Markers { // b knows the packs, and does not hear that they go
				ingest(t, b, "before", testImage(2, 10))
				images["before"] = testImage(2, 10)
				if err := a.sh.Mark(t.Context(), a.snapshotPacks()); err != nil {
					t.Fatal(err)
				}
			}
			rule := proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.List}, Prefix: a.sh.Bucket.Prefix + folder + "/", Faults: []s3test.Fault{s3test.StaleList(old)}})
			for i := range 2 {
				name := fmt.Sprint("b", i)
				ingest(t, b, name, chunks)
				images[name] = chunks
				wantImage(t, b, name, chunks)
				time.Sleep(imagesFresh) // so that List asks
				if _, err := b.List(); err != nil {
					t.Error(err)
				}
			}
			if rule.Hits() == 0 {
				t.Error("no listing was old")
			}
			rule.Remove()
			if err := a.Remove("a"); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*Store{a, b, a} {
				ripen(o)
				gc(t, s)
			}
			o.Cache = t.TempDir()
			for _, s := range []*Store{a, b, open(t, loc, o)} {
				for name, want := range images {
					wantImage(t, s, name, want)
				}
				wantClean(t, s)
			}
		})
	}
}

// TestBucketMarkerDamaged: a marker that comes wrong does not name other packs.
func TestBucketMarkerDamaged(t *testing.T) {
	loc, proxy := inBucket(t)
	a, b := open(t, loc, quiet(t.TempDir())), open(t, loc, quiet(t.TempDir()))
	ingest(t, a, "a", testImage(1, 20))
	if err := a.sh.Mark(t.Context(), a.snapshotPacks()); err != nil {
		t.Fatal(err)
	}
	rule := proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.Get}, Prefix: a.sh.Bucket.Prefix + fleet.Markers + "/", Count: 1,
		Faults: []s3test.Fault{s3test.FlipResponse(int64(len(record.MarkerMagic)) + 5)}})
	if err := b.sh.Refresh(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for _, p := range b.snapshotPacks() {
		if !p.Doomed.Load() {
			t.Errorf("pack %s is about to go, and b does not know", p.Name())
		}
	}
	if rule.Hits() != 1 || len(b.snapshotPacks()) < 2 {
		t.Errorf("%d hits, %d packs", rule.Hits(), len(b.snapshotPacks()))
	}
}
