package store

import (
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// quiet are options under which nothing is asked of the bucket but what a call needs.
func quiet(cache string) Options {
	return Options{Cache: cache, Grace: time.Hour, PackSize: 64 << 20}
}

// TestBucketCost bounds the requests that a checkpoint takes.
func TestBucketCost(t *testing.T) {
	loc, proxy := inBucket(t)
	a := open(t, loc, quiet(t.TempDir()))
	b := open(t, loc, quiet(t.TempDir()))
	small, big := testImage(1, 40), randomChunks(2, 24<<20)
	v := &victim{Store: a}
	kinds := []s3test.Kind{s3test.Put, s3test.List, s3test.Get, s3test.RangeGet, s3test.Head, s3test.Delete,
		s3test.MultipartCreate, s3test.MultipartPart, s3test.MultipartComplete, s3test.MultipartAbort, s3test.Other}
	for _, c := range []struct {
		name string
		most []int // of each kind
		call func() error
	}{
		{"a small checkpoint, all new", []int{3, 4}, func() error { return v.putImage("small", small) }},
		{"a checkpoint right after it with nothing new", []int{1, 2}, func() error { return v.putImage("same", small) }},
		{"a checkpoint of 24 MiB, all new", []int{2, 4, 0, 0, 0, 0, 1, 4, 1}, func() error { return v.putImage("big", big) }},
		{"another machine learns of it and has nothing new", []int{1, 4, 0, 4}, func() error {
			b.sh.Seen.Store(0)
			v.Store = b
			return v.putImage("theirs", big)
		}},
		{"a look at the list", []int{0, 1, 4}, func() error { _, err := b.List(); return err }},
		{"reading 24 MiB that are not here", []int{0, 2, 0, 30}, func() error { _, err := readImage(b, "big"); return err }},
		{"reading them again", []int{0, 0, 0, 0}, func() error {
			b.sh.Seen.Store(fleet.Now()) // within packsFresh, however busy the machine is
			_, err := readImage(b, "big")
			return err
		}},
		{"removing an image", []int{0, 0, 0, 0, 0, 1}, func() error { return a.Remove("same") }},
	} {
		time.Sleep(imagesFresh)
		proxy.ResetCounts()
		if err := c.call(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		n := proxy.Counts()
		t.Logf("%s: %v, %d bytes up, %d down", c.name, n.Requests, n.Up, n.Down)
		for i, k := range kinds {
			most := 0
			if i < len(c.most) {
				most = c.most[i]
			}
			if n.Requests[k] > most {
				t.Errorf("%s: %d requests %s, %d are enough", c.name, n.Requests[k], k, most)
			}
		}
	}
}

// TestBucketDedupe: what two machines have in common is in the bucket once.
func TestBucketDedupe(t *testing.T) {
	loc, _ := inBucket(t)
	a, b := open(t, loc, quiet(t.TempDir())), open(t, loc, quiet(t.TempDir()))
	chunks := randomChunks(1, 6<<20)
	ingest(t, a, "a", chunks)
	_, before := bucketPacks(t, a)
	b.sh.Seen.Store(0) // not within packsFresh of its Open
	im := ingest(t, b, "b", chunks)
	if _, after := bucketPacks(t, a); after-before > 10<<10 || im.Unique > 10<<10 {
		t.Errorf("%d bytes in packs before, %d after, %d called new", before, after, im.Unique)
	}
	if before > 6<<20+100<<10 {
		t.Errorf("%d bytes for 6 MiB", before)
	}
}

// TestBucketFirstPacks: a machine that saw an empty bucket sees what comes first.
func TestBucketFirstPacks(t *testing.T) {
	loc, _ := inBucket(t)
	a, b := open(t, loc, quiet(t.TempDir())), open(t, loc, quiet(t.TempDir()))
	chunks := testImage(1, 30)
	ingest(t, a, "a", chunks)
	wantImage(t, b, "a", chunks)
}

// TestBucketGrace: all machines have the grace time that the first one wrote.
func TestBucketGrace(t *testing.T) {
	loc, _ := inBucket(t)
	for _, mine := range []time.Duration{3 * time.Minute, 7 * time.Minute, 0} {
		o := quiet(t.TempDir())
		o.Grace = mine
		if s := open(t, loc, o); s.sh.Grace != 3*time.Minute {
			t.Errorf("%v given, %v used", mine, s.sh.Grace)
		}
	}
}
