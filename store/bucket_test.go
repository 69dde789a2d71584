package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// useEnv makes a server the one that environment variables name.
func useEnv(t testing.TB, env []string) {
	t.Helper()
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// quick are options under which a test does not wait long for a fault.
func quick(cache string) Options {
	return Options{Cache: cache, Patience: 15 * time.Second, attempt: 3 * time.Second, Grace: 2 * time.Second, PackSize: 1 << 20}
}

// inBucket starts a server behind a proxy and returns the location of an empty store there.
func inBucket(t testing.TB) (string, *s3test.Proxy) {
	t.Helper()
	loc, _, p := withServer(t)
	return loc, p
}

// withServer is inBucket for who needs the server as well.
func withServer(t testing.TB) (string, *s3test.Server, *s3test.Proxy) {
	t.Helper()
	srv := s3test.Start(t)
	p := srv.Proxy(t)
	useEnv(t, p.Env())
	return "s3://" + srv.Bucket + "/some/prefix", srv, p
}

func TestBucketRoundTrip(t *testing.T) {
	loc, proxy := inBucket(t)
	a := open(t, loc, quick(t.TempDir()))
	chunks := testImage(1, 120)
	im := ingest(t, a, "one", chunks)
	wantImage(t, a, "one", chunks)
	wantClean(t, a)

	b := open(t, loc, quick(t.TempDir())) // another machine
	wantImage(t, b, "one", chunks)
	if im2 := ingest(t, b, "two", chunks); im2.Unique > im.Unique/20 {
		t.Errorf("%d bytes stored again of %d", im2.Unique, im.Unique)
	}
	wantImage(t, a, "two", chunks)
	if err := a.Rename("two", "three"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(imagesFresh)
	wantImage(t, b, "three", chunks)
	if _, err := b.Get("two"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := b.Remove("one"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(imagesFresh)
	list, err := a.List()
	if err != nil || len(list) != 1 || list[0].Name != "three" {
		t.Errorf("%v, %v", list, err)
	}
	for _, s := range []*Store{a, b} {
		wantClean(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	n := proxy.Counts()
	t.Logf("requests: %v", n.Requests)
	a = open(t, loc, quick(a.o.Cache)) // with what its cache has
	wantImage(t, a, "three", chunks)
}

// TestBucketMultipart stores more than a part, so that the upload runs beside the ingest.
func TestBucketMultipart(t *testing.T) {
	loc, proxy := inBucket(t)
	o := quick(t.TempDir())
	o.PackSize = 64 << 20
	s := open(t, loc, o)
	chunks := randomChunks(5, 24<<20)
	in, err := s.Begin(context.Background(), "big")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
		if i == len(chunks)-1 {
			in.written()
			for end := time.Now().Add(20 * time.Second); proxy.Counts().Requests[s3test.MultipartPart] == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("no part was sent before the commit")
				}
			}
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	o.Cache = t.TempDir()
	wantImage(t, open(t, loc, o), "big", chunks)
	if n := proxy.Counts().Requests[s3test.MultipartPart]; n != 4 {
		t.Errorf("%d parts", n)
	}
}

// randomChunks are n bytes that do not compress.
func randomChunks(seed uint64, n int) (chunks [][]byte) {
	rnd := newRand(seed)
	for ; n > 0; n -= 64 << 10 {
		c := make([]byte, 64<<10)
		fillRandom(rnd, c)
		chunks = append(chunks, c)
	}
	return chunks
}

// TestBucketCacheBound reads more than the cache may hold.
func TestBucketCacheBound(t *testing.T) {
	loc, proxy := inBucket(t)
	a := open(t, loc, quick(t.TempDir()))
	var images [][][]byte
	for i := range uint64(6) {
		images = append(images, randomChunks(i, 4<<20))
		ingest(t, a, fmt.Sprint(i), images[i])
	}
	o := quick(t.TempDir())
	o.CacheSize = 6 << 20
	b := open(t, loc, o)
	for range 2 {
		for i := range images {
			wantImage(t, b, fmt.Sprint(i), images[i])
			if n := dirBytes(t, b.dir); n > o.CacheSize+3<<20 {
				t.Errorf("the cache holds %d bytes, %d are its limit", n, o.CacheSize)
			}
		}
	}
	proxy.ResetCounts()
	wantImage(t, b, "5", images[5]) // just read: all here
	if n := proxy.Counts(); n.Requests[s3test.RangeGet] > 0 {
		t.Errorf("read again from the bucket: %v", n.Requests)
	}
}

// TestBucketKey: a bucket with a key tells nothing, and wrong keys are refused.
func TestBucketKey(t *testing.T) {
	loc, _ := inBucket(t)
	o := quick(t.TempDir())
	o.Key = testKey(t)
	s := open(t, loc, o)
	chunks := testImage(4, 60)
	ingest(t, s, "private-name", chunks)
	o2 := o
	o2.Cache = t.TempDir()
	wantImage(t, open(t, loc, o2), "private-name", chunks)
	for _, k := range []*Key{nil, testKey(t)} {
		var ke *KeyError
		o2.Cache, o2.Key = t.TempDir(), k
		if _, err := Open(loc, o2); !errors.As(err, &ke) {
			t.Error(err)
		}
	}
	err := s.sh.Bucket.List(t.Context(), "", "", func(obj bucket.Object) {
		b, err := s.sh.Bucket.GetAll(t.Context(), obj.Key, 1<<30)
		if err != nil || bytes.Contains(b, []byte("private-name")) || bytes.Contains(b, []byte("CPTN")) {
			t.Errorf("%s: readable, or %v", obj.Key, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestBucketSameName: two machines choose the same name, both images stay.
func TestBucketSameName(t *testing.T) {
	loc, _ := inBucket(t)
	a, b := open(t, loc, quick(t.TempDir())), open(t, loc, quick(t.TempDir()))
	ca, cb := testImage(1, 20), testImage(2, 20)
	ingest(t, a, "same", ca)
	ingest(t, b, "same", cb)
	time.Sleep(imagesFresh)
	for _, s := range []*Store{a, b} {
		list, err := s.List()
		if err != nil || len(list) != 2 || list[0].Name != "same" || !strings.HasPrefix(list[1].Name, "same~") {
			t.Fatalf("%v, %v", list, err)
		}
		wantImage(t, s, "same", ca)
		wantImage(t, s, list[1].Name, cb)
		wantClean(t, s)
	}
}

// TestBucketRefused: what cannot work says so at once.
func TestBucketRefused(t *testing.T) {
	loc, _ := inBucket(t)
	for _, c := range []struct{ loc, env, val, want string }{
		{"s3://nosuchbucket", "", "", "create it first"},
		{loc, "AWS_SECRET_ACCESS_KEY", "wrong", "check the credentials"},
		{loc, "AWS_ENDPOINT_URL", "ftp://x", "AWS_ENDPOINT_URL"},
	} {
		t.Run(c.want, func(t *testing.T) {
			if c.env != "" {
				t.Setenv(c.env, c.val)
			}
			if _, err := Open(c.loc, quick(t.TempDir())); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
		})
	}
}
