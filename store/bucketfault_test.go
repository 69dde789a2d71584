package store

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// faultBench is a server with a store for each fault, all at once.
type faultBench struct {
	root  string // location above the stores
	proxy *s3test.Proxy
}

func newFaultBench(t *testing.T) *faultBench {
	loc, proxy := inBucket(t)
	return &faultBench{loc, proxy}
}

// victim is a store in a bucket with an image in it, about to meet a fault.
type victim struct {
	*Store
	loc    string
	keys   string // what all its keys begin with
	images map[string][][]byte
}

func (b *faultBench) victim(t *testing.T, name string) *victim {
	t.Helper()
	name = strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "")
	v := &victim{loc: b.root + "/" + name, keys: "some/prefix/" + name + "/", images: map[string][][]byte{"base": testImage(1, 20)}}
	v.Store = v.machine(t)
	ingest(t, v.Store, "base", v.images["base"])
	return v
}

// patient are options under which a fault that ends is always waited for. Parts of a pack
// are sent while it is written, since 9 MiB are more than one.
func patient(cache string) Options {
	return Options{Cache: cache, Patience: time.Minute, attempt: 2 * time.Second, Grace: time.Minute, PackSize: 64 << 20}
}

// machine is a store that knows only what is in the bucket.
func (b *victim) machine(t *testing.T) *Store {
	t.Helper()
	return open(t, b.loc, patient(t.TempDir()))
}

// fresh are chunks that are not in the store; many of them are more than one part.
func fresh(many bool) [][]byte {
	if many {
		return randomChunks(1000, 9<<20)
	}
	return randomChunks(1001, 1<<20)
}

func (b *victim) putImage(name string, chunks [][]byte) error {
	in, err := b.Begin(context.Background(), name)
	if err != nil {
		return err
	}
	defer in.Abort()
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			return err
		}
	}
	return in.Commit()
}

// wantWhole sees with the eyes of a new machine that a store is what it should be.
func (b *victim) wantWhole(t *testing.T) {
	t.Helper()
	s := b.machine(t)
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range list {
		if b.images[im.Name] == nil {
			t.Errorf("%q is listed", im.Name)
		}
	}
	for name, chunks := range b.images {
		wantImage(t, s, name, chunks)
	}
	wantClean(t, s)
	for u := range s.sh.Bucket.Uploads(t.Context(), "") {
		t.Errorf("an upload of %s is left: %v", u.Key, u.Err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// everyKind is every request that a checkpoint or its reader makes.
var everyKind = []s3test.Kind{s3test.Put, s3test.Get, s3test.RangeGet, s3test.Head, s3test.Delete, s3test.List,
	s3test.MultipartCreate, s3test.MultipartPart, s3test.MultipartComplete}

// TestBucketFaultEnds: every fault that ends is ridden out, wherever it strikes, and leaves
// nothing behind.
func TestBucketFaultEnds(t *testing.T) {
	b := newFaultBench(t)
	type row struct {
		name   string
		kinds  []s3test.Kind
		prefix string
		count  int
		faults []s3test.Fault
	}
	one := func(k s3test.Kind) []s3test.Kind { return []s3test.Kind{k} }
	rows := []row{
		{"range cut", one(s3test.RangeGet), "", 3, []s3test.Fault{s3test.CutResponse(100)}},
		{"range cut before its first byte", one(s3test.RangeGet), "", 2, []s3test.Fault{s3test.CutResponse(0)}},
		{"record cut on its way up", one(s3test.Put), "images/", 2, []s3test.Fault{s3test.CutRequest(50)}},
		{"answer to a record lost", one(s3test.Put), "images/", 2, []s3test.Fault{s3test.LoseAnswer()}},
		{"record cut on its way down", one(s3test.Get), "images/", 2, []s3test.Fault{s3test.CutResponse(20)}},
		{"part cut", one(s3test.MultipartPart), "", 2, []s3test.Fault{s3test.CutRequest(3 << 20)}},
		{"answer to a part lost", one(s3test.MultipartPart), "", 1, []s3test.Fault{s3test.LoseAnswer()}},
		{"part's bytes wrong", one(s3test.MultipartPart), "", 1, []s3test.Fault{s3test.FlipRequest(1 << 20)}},
		{"pack's bytes wrong", one(s3test.Put), "packs/", 1, []s3test.Fault{s3test.FlipRequest(300)}},
		{"record's bytes wrong", one(s3test.Put), "images/", 1, []s3test.Fault{s3test.FlipRequest(60)}},
		{"answer to the end of an upload lost", one(s3test.MultipartComplete), "", 1, []s3test.Fault{s3test.LoseAnswer()}},
		{"end of an upload cut", one(s3test.MultipartComplete), "", 2, []s3test.Fault{s3test.CutRequest(10)}},
		{"chunks come wrong", one(s3test.RangeGet), "packs/", 1, []s3test.Fault{s3test.FlipResponse(5000)}},
		{"records come wrong", one(s3test.Get), "images/", 1, []s3test.Fault{s3test.FlipResponse(30)}},
		{"the version comes wrong", one(s3test.Get), "version", 1, []s3test.Fault{s3test.FlipResponse(20)}},
		{"listings drip", one(s3test.List), "", 2, []s3test.Fault{s3test.SlowResponse(10_000)}},
		{"ranges drip", one(s3test.RangeGet), "", 2, []s3test.Fault{s3test.SlowResponse(1_000_000)}},
		{"late, but in time", everyKind, "", 6, []s3test.Fault{s3test.Delay(200 * time.Millisecond)}},
		{"later than a try", everyKind, "", 2, []s3test.Fault{s3test.Delay(5 * time.Second)}},
		{"range stalls", one(s3test.RangeGet), "", 1, []s3test.Fault{s3test.StallResponse(100)}},
		{"record stalls", one(s3test.Put), "images/", 1, []s3test.Fault{s3test.StallRequest(10)}},
	}
	for _, k := range everyKind {
		rows = append(rows,
			row{"500s for " + string(k), one(k), "", 3, []s3test.Fault{s3test.Answer(500, "InternalError")}},
			row{"503s for " + string(k), one(k), "", 3, []s3test.Fault{s3test.Answer(503, "SlowDown")}},
			row{"a black hole for " + string(k), one(k), "", 1, []s3test.Fault{s3test.BlackHole()}})
	}
	if os.Getenv("CKPTFS_SOAK") == "" { // a part has half a minute, whatever the options say
		rows = slices.DeleteFunc(rows, func(r row) bool { return r.name == "a black hole for multipart part" })
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			v := b.victim(t, r.name)
			rule := b.proxy.Add(s3test.Rule{Kinds: r.kinds, Prefix: v.keys + r.prefix, Count: r.count, Faults: r.faults})
			chunks := fresh(strings.HasPrefix(string(r.kinds[0]), "multipart"))
			if err := v.putImage("new", chunks); err != nil {
				t.Errorf("commit: %v", err)
			}
			other := v.machine(t)
			wantImage(t, other, "new", chunks)
			wantImage(t, other, "base", v.images["base"])
			gc(t, other)
			if err := other.Remove("new"); err != nil {
				t.Error(err)
			}
			if err := other.Close(); err != nil {
				t.Error(err)
			}
			if rule.Hits() == 0 {
				t.Error("the fault did not strike")
			}
			rule.Remove()
			v.wantWhole(t)
		})
	}
}

// TestBucketFaultStays: a fault that does not end is an error that says what to do, nothing
// is listed, and when it is over all goes on.
func TestBucketFaultStays(t *testing.T) {
	b := newFaultBench(t)
	for _, r := range []struct {
		name   string
		kinds  []s3test.Kind
		prefix string
		fault  s3test.Fault
	}{
		{"record refused", []s3test.Kind{s3test.Put}, "images/", s3test.Answer(503, "SlowDown")},
		{"answers to records lost", []s3test.Kind{s3test.Put}, "images/", s3test.LoseAnswer()},
		{"parts refused", []s3test.Kind{s3test.MultipartPart}, "", s3test.Answer(500, "InternalError")},
		{"no upload begins", []s3test.Kind{s3test.MultipartCreate}, "", s3test.Answer(503, "SlowDown")},
		{"no upload ends", []s3test.Kind{s3test.MultipartComplete}, "", s3test.Answer(500, "InternalError")},
		{"answers to ends of uploads cut", []s3test.Kind{s3test.MultipartComplete}, "", s3test.CutRequest(5)},
		{"packs of nodes refused", []s3test.Kind{s3test.Put}, "packs/", s3test.Answer(503, "SlowDown")},
		{"bytes go wrong on their way up", []s3test.Kind{s3test.Put}, "images/", s3test.FlipRequest(70)},
		{"listings refused", []s3test.Kind{s3test.List}, "", s3test.Answer(503, "SlowDown")},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			v := b.victim(t, r.name)
			o := patient(t.TempDir())
			o.Patience, o.attempt = 500*time.Millisecond, 10*time.Second
			v.Store = open(t, v.loc, o)
			rule := b.proxy.Add(s3test.Rule{Kinds: r.kinds, Prefix: v.keys + r.prefix, Faults: []s3test.Fault{r.fault}})
			time.Sleep(imagesFresh) // what is known is old enough to ask again
			chunks := fresh(strings.HasPrefix(string(r.kinds[0]), "multipart"))
			err := v.putImage("new", chunks)
			if r.kinds[0] == s3test.List {
				_, err = v.List()
			}
			wantBucketError(t, err)
			if rule.Hits() == 0 {
				t.Error("the fault did not strike")
			}
			rule.Remove()
			v.wantWhole(t)
			v.images["again"] = chunks
			ingest(t, v.Store, "again", chunks)
			v.wantWhole(t)
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantBucketError: the error says what was asked of which object, how often, and what to do.
func wantBucketError(t *testing.T, err error) {
	t.Helper()
	var be *BucketError
	if !errors.As(err, &be) {
		t.Errorf("%v is no BucketError", err)
		return
	}
	if !strings.Contains(err.Error(), "s3://") || !strings.Contains(err.Error(), "tries); ") && !strings.Contains(err.Error(), "; check the ") {
		t.Errorf("%v does not say what to do", err)
	}
}
