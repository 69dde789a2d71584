package s3test

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// Listing is what a bucket held at one moment.
type Listing struct {
	objects []minio.ObjectInfo // sorted by key
}

// Snapshot returns what the bucket holds now. It asks the server itself, so neither rules
// nor counts see it.
func (s *Server) Snapshot(t testing.TB) *Listing {
	t.Helper()
	l := &Listing{}
	for o := range s.Client(t).ListObjects(t.Context(), s.Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatalf("listing %s for a snapshot: %v", s.Bucket, o.Err)
		}
		l.objects = append(l.objects, o)
	}
	slices.SortFunc(l.objects, func(a, b minio.ObjectInfo) int { return strings.Compare(a.Key, b.Key) })
	return l
}

// Len returns how many objects there are.
func (l *Listing) Len() int { return len(l.objects) }

// listResult is the answer to ListObjectsV2.
type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name                  string
	Prefix                string
	Delimiter             string `xml:",omitempty"`
	StartAfter            string `xml:",omitempty"`
	EncodingType          string `xml:",omitempty"`
	MaxKeys, KeyCount     int
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listed
	CommonPrefixes        []common
}

type listed struct {
	Key, LastModified, ETag string
	Size                    int64
	StorageClass            string
}

type common struct{ Prefix string }

// answer answers a listing.
func (l *Listing) answer(w http.ResponseWriter, q *Request) {
	text, err := xml.Marshal(l.page(q))
	if err != nil {
		panic(err) // strings and numbers only
	}
	w.Header().Set("Content-Type", "application/xml")
	_, _ = w.Write(append([]byte(xml.Header), text...)) // the client may be gone
}

// page returns the part of the listing that is asked for.
func (l *Listing) page(q *Request) *listResult {
	get := q.Query.Get
	res := &listResult{Name: q.Bucket, Delimiter: get("delimiter"), EncodingType: get("encoding-type"), MaxKeys: 1000}
	if n, err := strconv.Atoi(get("max-keys")); err == nil && n < res.MaxKeys {
		res.MaxKeys = n
	}
	encode := func(s string) string { return s }
	if res.EncodingType == "url" {
		encode = url.QueryEscape
	}
	res.Prefix, res.StartAfter = encode(get("prefix")), encode(get("start-after"))
	after := get("start-after")
	if token, err := base64.URLEncoding.DecodeString(get("continuation-token")); err == nil && len(token) > 0 {
		after = string(token)
	}
	for _, o := range l.objects {
		name := group(o.Key, get("prefix"), res.Delimiter)
		if !strings.HasPrefix(o.Key, get("prefix")) || o.Key <= after || name == after {
			continue
		}
		if res.KeyCount == res.MaxKeys {
			res.IsTruncated, res.NextContinuationToken = true, base64.URLEncoding.EncodeToString([]byte(after))
			break
		}
		res.add(o, name, encode)
		after = name
	}
	return res
}

// add appends an object, or the group it is in.
func (res *listResult) add(o minio.ObjectInfo, name string, encode func(string) string) {
	res.KeyCount++
	if name != o.Key {
		res.CommonPrefixes = append(res.CommonPrefixes, common{encode(name)})
		return
	}
	res.Contents = append(res.Contents, listed{
		Key: encode(o.Key), LastModified: o.LastModified.UTC().Format(time.RFC3339Nano),
		ETag: `"` + o.ETag + `"`, Size: o.Size, StorageClass: "STANDARD",
	})
}

// group returns what a listing shows for a key: up to the first delimiter after the prefix,
// or all of it.
func group(key, prefix, delimiter string) string {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || delimiter == "" {
		return key
	}
	if head, _, found := strings.Cut(rest, delimiter); found {
		return prefix + head + delimiter
	}
	return key
}
