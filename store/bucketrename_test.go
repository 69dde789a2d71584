package store

import (
	"errors"
	"io/fs"
	"net/http"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// TestBucketRename renames an image while another machine does something to it, and over a
// connection or with a server that is not all it should be.
func TestBucketRename(t *testing.T) {
	chunks := testImage(1, 10)
	for _, c := range []struct {
		name    string
		between func(t *testing.T, b *Store) // by the other machine, before the record is written
		faults  []s3test.Fault               // of that request
		want    error
		images  []string // in the end
	}{
		{"removed", func(t *testing.T, b *Store) {
			if err := b.Remove("x"); err != nil {
				t.Error(err)
			}
		}, nil, fs.ErrNotExist, nil},
		{"renamed", func(t *testing.T, b *Store) {
			if err := b.Rename("x", "y"); err != nil {
				t.Error(err)
			}
		}, nil, nil, []string{"z"}},
		{"answer lost", nil, []s3test.Fault{s3test.LoseAnswer()}, nil, []string{"z"}},
		{"no conditions", nil, []s3test.Fault{s3test.Answer(http.StatusNotImplemented, "NotImplemented")}, nil, []string{"z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("AWS_ENDPOINT_URL", "") // back as it was when the subtest ends
			loc, srv, p := withServer(t)
			a := open(t, loc, quick(t.TempDir()))
			useEnv(t, srv.Env()) // the proxy is busy while the other machine acts
			b := open(t, loc, quick(t.TempDir()))
			ingest(t, a, "x", chunks)
			if _, err := b.Get("x"); err != nil {
				t.Fatal(err)
			}
			rule := p.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.Put}, Prefix: a.sh.Bucket.Prefix + layout.Images + "/", Count: 1,
				Match: func(*s3test.Request) bool {
					if c.between != nil {
						c.between(t, b)
						c.between = nil
					}
					return true
				}, Faults: c.faults})
			if err := a.Rename("x", "z"); !errors.Is(err, c.want) {
				t.Errorf("Rename: %v, want %v", err, c.want)
			}
			if rule.Hits() != 1 {
				t.Errorf("%d of the requests were met", rule.Hits())
			}
			time.Sleep(imagesFresh)
			for _, s := range []*Store{a, b} {
				list, err := s.List()
				if err != nil || len(list) != len(c.images) {
					t.Fatalf("%v, %v, want %q", list, err, c.images)
				}
				for i := range list {
					if list[i].Name != c.images[i] || !list[i].Kept {
						t.Errorf("%+v, want %q", list[i], c.images[i])
					}
					wantImage(t, s, list[i].Name, chunks)
				}
				wantClean(t, s)
			}
		})
	}
}
