package s3test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"
)

// randomBytes returns bytes that depend on the seed alone.
func randomBytes(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// once is a client that does not retry, so that a fault is seen as it is.
func once(t testing.TB, p *Proxy) *minio.Client {
	t.Helper()
	return p.Client(t, minio.Options{MaxRetries: 1})
}

// put stores an object in one request.
func put(t testing.TB, c *minio.Client, bucket, key string, data []byte, o minio.PutObjectOptions) error {
	t.Helper()
	o.DisableMultipart = true
	_, err := c.PutObject(t.Context(), bucket, key, bytes.NewReader(data), int64(len(data)), o)
	return err
}

// mustPut stores an object.
func mustPut(t testing.TB, c *minio.Client, bucket, key string, data []byte) {
	t.Helper()
	if err := put(t, c, bucket, key, data, minio.PutObjectOptions{}); err != nil {
		t.Fatalf("PUT %s: %v", key, err)
	}
}

// get reads an object, or the part from first to last if last is not 0.
func get(t testing.TB, c *minio.Client, bucket, key string, first, last int64) ([]byte, error) {
	t.Helper()
	var o minio.GetObjectOptions
	if last != 0 {
		if err := o.SetRange(first, last); err != nil {
			t.Fatal(err)
		}
	}
	// Core, because Object.Read retries and reads ahead by ranges of its own.
	r, _, _, err := minio.Core{Client: c}.GetObject(t.Context(), bucket, key, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// mustHold fails unless an object holds just the data.
func mustHold(t testing.TB, c *minio.Client, bucket, key string, want []byte) {
	t.Helper()
	got, err := get(t, c, bucket, key, 0, 0)
	if err != nil {
		t.Fatalf("GET %s: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("GET %s: %d bytes, not the %d that were put", key, len(got), len(want))
	}
}

// mustLack fails unless there is no object of that name.
func mustLack(t testing.TB, c *minio.Client, bucket, key string) {
	t.Helper()
	if _, err := c.StatObject(t.Context(), bucket, key, minio.StatObjectOptions{}); codeOf(err) != minio.NoSuchKey {
		t.Errorf("HEAD %s: %v, want %s", key, err, minio.NoSuchKey)
	}
}

// keys lists a bucket.
func keys(t testing.TB, c *minio.Client, bucket string, o minio.ListObjectsOptions) []string {
	t.Helper()
	var list []string
	for obj := range c.ListObjects(t.Context(), bucket, o) {
		if obj.Err != nil {
			t.Fatalf("LIST: %v", obj.Err)
		}
		list = append(list, obj.Key)
	}
	return list
}

func codeOf(err error) string { return minio.ToErrorResponse(err).Code }

// TestServer does what a client does all day, through a proxy without rules.
func TestServer(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	c := once(t, p)
	data := randomBytes(1, 300_000)
	mustPut(t, c, s.Bucket, "a/one", data)
	mustPut(t, c, s.Bucket, "a/two & three+ä", nil)
	mustHold(t, c, s.Bucket, "a/one", data)
	mustHold(t, c, s.Bucket, "a/two & three+ä", nil)
	part, err := get(t, c, s.Bucket, "a/one", 1000, 2999)
	if err != nil || !bytes.Equal(part, data[1000:3000]) {
		t.Errorf("a range: %d bytes, %v", len(part), err)
	}
	if got := keys(t, c, s.Bucket, minio.ListObjectsOptions{Recursive: true}); !slices.Equal(got, []string{"a/one", "a/two & three+ä"}) {
		t.Errorf("LIST: %q", got)
	}
	if err := c.RemoveObject(t.Context(), s.Bucket, "a/one", minio.RemoveObjectOptions{}); err != nil {
		t.Error(err)
	}
	mustLack(t, c, s.Bucket, "a/one")
	counts := p.ResetCounts()
	want := map[Kind]int{Put: 2, Get: 2, RangeGet: 1, List: 1, Delete: 1, Head: 1}
	if fmt.Sprint(counts.Requests) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", counts.Requests, want)
	}
	if counts.Up < 300_000 || counts.Up > 310_000 || counts.Down < 302_000 || counts.Down > 310_000 {
		t.Errorf("counted %d bytes up and %d down", counts.Up, counts.Down)
	}
	if again := p.Counts(); len(again.Requests) != 0 || again.Up != 0 || again.Down != 0 {
		t.Errorf("after a reset: %v", again)
	}
}

// TestRestart kills the server between two requests.
func TestRestart(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	c := once(t, p)
	mustPut(t, c, s.Bucket, "k", []byte("before"))
	s.Stop()
	if err := put(t, c, s.Bucket, "l", []byte("no"), minio.PutObjectOptions{}); err == nil {
		t.Error("a server that was killed took a PUT")
	}
	s.Restart(t)
	mustHold(t, c, s.Bucket, "k", []byte("before"))
	mustLack(t, c, s.Bucket, "l")
}

// TestSidecar keeps metadata beside the objects, as on a filesystem without user xattrs.
func TestSidecar(t *testing.T) {
	s := Start(t)
	s.Stop()
	if s.sidecar == "" {
		s.sidecar = filepath.Join(t.TempDir(), "meta")
		if err := os.Mkdir(s.sidecar, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.Restart(t)
	c := s.Client(t)
	mustPut(t, c, s.Bucket, "k", []byte("data"))
	mustHold(t, c, s.Bucket, "k", []byte("data"))
	if got := keys(t, c, s.Bucket, minio.ListObjectsOptions{Recursive: true}); !slices.Equal(got, []string{"k"}) {
		t.Errorf("LIST: %q", got)
	}
	if _, err := os.Stat(filepath.Join(s.sidecar, s.Bucket, "k")); err != nil {
		t.Errorf("no metadata in the sidecar: %v", err)
	}
}

// TestConditionalPut lets many clients create one object; just one may succeed.
func TestConditionalPut(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		c := once(t, p)
		wg.Go(func() {
			var o minio.PutObjectOptions
			o.SetMatchETagExcept("*")
			errs[i] = put(t, c, s.Bucket, "only", fmt.Appendf(nil, "of %d", i), o)
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Errorf("both %d and %d created the object", winner, i)
		case codeOf(err) != minio.PreconditionFailed:
			t.Errorf("client %d: %v, want %s", i, err, minio.PreconditionFailed)
		}
	}
	mustHold(t, s.Client(t), s.Bucket, "only", fmt.Appendf(nil, "of %d", winner))
}

// TestReplaceIfMatch replaces an object only if it is the one that was seen.
func TestReplaceIfMatch(t *testing.T) {
	s := Start(t)
	c := s.Client(t)
	mustPut(t, c, s.Bucket, "k", []byte("first"))
	seen, err := c.StatObject(t.Context(), s.Bucket, "k", minio.StatObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var o minio.PutObjectOptions
	o.SetMatchETag(seen.ETag)
	if err := put(t, c, s.Bucket, "k", []byte("second"), o); err != nil {
		t.Fatal(err)
	}
	if err := put(t, c, s.Bucket, "k", []byte("third"), o); codeOf(err) != minio.PreconditionFailed {
		t.Errorf("with an old ETag: %v, want %s", err, minio.PreconditionFailed)
	}
	mustHold(t, c, s.Bucket, "k", []byte("second"))
}

// TestListing walks a bucket in pages, from a key and by prefix.
func TestListing(t *testing.T) {
	s := Start(t)
	c := s.Client(t)
	var all []string
	for i := range 25 {
		key := fmt.Sprintf("%c/%02d", 'a'+i%3, i)
		mustPut(t, c, s.Bucket, key, []byte(key))
		all = append(all, key)
	}
	slices.Sort(all)
	snap := s.Snapshot(t)
	mustPut(t, c, s.Bucket, "zz", nil)
	p := s.Proxy(t)
	p.Add(Rule{Kinds: []Kind{List}, Faults: []Fault{StaleList(snap)}})
	if err := c.RemoveObject(t.Context(), s.Bucket, "zz", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	// The snapshot has to answer as the server does.
	for name, c := range map[string]*minio.Client{"server": c, "snapshot": once(t, p)} {
		for _, o := range []struct {
			minio.ListObjectsOptions
			want []string
		}{
			{minio.ListObjectsOptions{Recursive: true}, all},
			{minio.ListObjectsOptions{Recursive: true, MaxKeys: 7}, all},
			{minio.ListObjectsOptions{Recursive: true, MaxKeys: 4, StartAfter: all[9]}, all[10:]},
			{minio.ListObjectsOptions{Recursive: true, StartAfter: "a/~"}, all[9:]},
			{minio.ListObjectsOptions{Recursive: true, Prefix: "b/"}, all[9:17]},
			{minio.ListObjectsOptions{MaxKeys: 1}, []string{"a/", "b/", "c/"}},
			{minio.ListObjectsOptions{Prefix: "c/"}, all[17:]},
			{minio.ListObjectsOptions{Prefix: "nothing"}, nil},
		} {
			if got := keys(t, c, s.Bucket, o.ListObjectsOptions); !slices.Equal(got, o.want) {
				t.Errorf("%s: LIST %+v: %q, want %q", name, o.ListObjectsOptions, got, o.want)
			}
		}
	}
}

// TestMultipart stores an object in parts; it is there when it is complete and not before.
func TestMultipart(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	c := minio.Core{Client: once(t, p)}
	data := randomBytes(2, 11<<20)
	id, err := c.NewMultipartUpload(t.Context(), s.Bucket, "big", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var parts []minio.CompletePart
	for i := 1; len(data) > (i-1)*(5<<20); i++ {
		b := data[(i-1)*(5<<20) : min(i*(5<<20), len(data))]
		part, err := c.PutObjectPart(t.Context(), s.Bucket, "big", id, i, bytes.NewReader(b), int64(len(b)), minio.PutObjectPartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, minio.CompletePart{PartNumber: i, ETag: part.ETag})
	}
	mustLack(t, c.Client, s.Bucket, "big")
	if got := keys(t, c.Client, s.Bucket, minio.ListObjectsOptions{Recursive: true}); len(got) > 0 {
		t.Errorf("LIST shows an upload that is not complete: %q", got)
	}
	var uploads int
	for range c.ListIncompleteUploads(t.Context(), s.Bucket, "", true) {
		uploads++
	}
	if uploads != 1 {
		t.Errorf("%d uploads are listed, want 1", uploads)
	}
	if _, err := c.CompleteMultipartUpload(t.Context(), s.Bucket, "big", id, parts, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	mustHold(t, c.Client, s.Bucket, "big", data)
	n := p.Counts().Requests
	if n[MultipartCreate] != 1 || n[MultipartPart] != 3 || n[MultipartComplete] != 1 || n[ListUploads] != 1 {
		t.Errorf("counted %v", n)
	}
}

// TestMultipartAbort gives up an upload; nothing of it stays.
func TestMultipartAbort(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	c := minio.Core{Client: once(t, p)}
	id, err := c.NewMultipartUpload(t.Context(), s.Bucket, "big", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := randomBytes(3, 5<<20)
	if _, err := c.PutObjectPart(t.Context(), s.Bucket, "big", id, 1, bytes.NewReader(b), int64(len(b)), minio.PutObjectPartOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.AbortMultipartUpload(t.Context(), s.Bucket, "big", id); err != nil {
		t.Fatal(err)
	}
	b = b[:1000] // sent before the server, which does not wait for the body, can close the connection
	_, err = c.PutObjectPart(t.Context(), s.Bucket, "big", id, 2, bytes.NewReader(b), int64(len(b)), minio.PutObjectPartOptions{})
	if codeOf(err) != minio.NoSuchUpload {
		t.Errorf("a part after the end: %v, want %s", err, minio.NoSuchUpload)
	}
	for u := range c.ListIncompleteUploads(t.Context(), s.Bucket, "", true) {
		t.Errorf("still listed: %+v", u)
	}
	if p.Counts().Requests[MultipartAbort] != 1 {
		t.Errorf("counted %v", p.Counts().Requests)
	}
}

// TestEnv checks that the environment leads to the proxy.
func TestEnv(t *testing.T) {
	s := Start(t)
	p := s.Proxy(t)
	if !slices.Contains(p.Env(), "AWS_ENDPOINT_URL="+p.Endpoint) || !slices.Contains(s.Env(), "AWS_ENDPOINT_URL="+s.Endpoint) {
		t.Errorf("the environment is %q and %q", s.Env(), p.Env())
	}
	resp, err := http.Get(p.Endpoint + "/" + s.Bucket + "/k")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("without a signature: %s", resp.Status)
	}
}

// TestBuildFails wants the server built where nothing can be.
func TestBuildFails(t *testing.T) {
	if name, err := build(filepath.Join(os.DevNull, "x")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("%q, %v, want %v", name, err, unix.ENOTDIR)
	}
}
