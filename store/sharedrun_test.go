package store

import (
	"fmt"
	"testing"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// TestBucketSharedRun: a new machine learns of many packs with few requests.
func TestBucketSharedRun(t *testing.T) {
	loc, proxy := inBucket(t)
	o := short(t.TempDir())
	o.young = 1e18 // GC leaves the packs as they are
	a := open(t, loc, o)
	for i := range uint64(50) {
		ingest(t, a, fmt.Sprint(i), testImage(i, 8))
	}
	gc(t, a)
	n, _ := bucketPacks(t, a)
	proxy.ResetCounts()
	o.Cache = t.TempDir()
	b := open(t, loc, o)
	if c := proxy.Counts().Requests; c[s3test.RangeGet] > n/2 {
		t.Errorf("%d packs: %v", n, c)
	} else {
		t.Logf("%d packs: %v", n, c)
	}
	for i := range uint64(50) {
		wantImage(t, b, fmt.Sprint(i), testImage(i, 8))
	}
	wantClean(t, b)
	// A run that is damaged helps nobody and hurts nobody.
	err := b.sh.Bucket.List(t.Context(), layout.Index+"/", "", func(obj bucket.Object) {
		if err := b.sh.Bucket.PutBytes(t.Context(), obj.Key, []byte("x"), bucket.Always); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Cache = t.TempDir()
	wantClean(t, open(t, loc, o))
}
