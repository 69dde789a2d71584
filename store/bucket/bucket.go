// Package bucket talks to a folder of an object store: every call is tried again for as long as the
// user has patience, and every write carries its checksum. It knows nothing of what is inside.
package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// Bucket is a folder of an object store. Every call is tried again until it succeeds, fails
// for good, or the patience ends; all of them may be made by any number of goroutines.
type Bucket struct {
	core     *minio.Core
	URL      string // as the user wrote it
	Name     string
	Prefix   string
	patience time.Duration // how long one call is tried
	Attempt  time.Duration // how long one try of a small request may take
	slots    chan struct{} // requests under way
}

// What is reasonable for servers from the next rack to the next continent.
const (
	DefaultPatience = 90 * time.Second
	DefaultAttempt  = 20 * time.Second
	slowest         = 256 << 10 // bytes a second, below which a transfer counts as hung
	Slots           = 32
	maxBackoff      = 5 * time.Second
)

// Error says what a bucket did not do, after all retries.
type Error struct {
	Op    string // "get", "put", "list" …
	URL   string // of the object
	Tries int
	Err   error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s", e.Op, e.URL)
	if e.Tries > 1 {
		s += fmt.Sprintf(" (%d tries)", e.Tries)
	}
	return s + ": " + e.Err.Error() + e.advice()
}

func (e *Error) advice() string {
	switch status(e.Err) {
	case http.StatusForbidden, http.StatusUnauthorized:
		return "; check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) and what they may do"
	case 0, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if e.Tries > 1 {
			return "; check the server (AWS_ENDPOINT_URL) and try again"
		}
	}
	return ""
}

// Unwrap makes errors.Is find what callers decide on: fs.ErrNotExist, fs.ErrExist.
func (e *Error) Unwrap() []error {
	switch status(e.Err) {
	case http.StatusNotFound:
		return []error{fs.ErrNotExist, e.Err}
	case http.StatusPreconditionFailed:
		return []error{fs.ErrExist, e.Err}
	case http.StatusForbidden, http.StatusUnauthorized:
		return []error{fs.ErrPermission, e.Err}
	}
	return []error{e.Err}
}

// status is the HTTP status inside an error, 0 if the server did not answer.
func status(err error) int {
	var re minio.ErrorResponse
	if errors.As(err, &re) {
		return re.StatusCode
	}
	return 0
}

// temporary reports whether another try may help.
func temporary(err error) bool {
	var re minio.ErrorResponse
	if !errors.As(err, &re) {
		return true // the connection broke, or the try took too long
	}
	switch re.Code {
	case "RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "SlowDown", "RequestTimeTooSkewed":
		return true
	}
	switch re.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusConflict:
		return true
	}
	return re.StatusCode == 0 || re.StatusCode >= 500 && re.StatusCode != http.StatusNotImplemented
}

// Open makes the client of a bucket. No request is made. patience is how long a call is tried,
// attempt how long one try of a small request may take.
func Open(location string, patience, attempt time.Duration) (*Bucket, error) {
	name, prefix, err := parseBucket(location)
	if err != nil {
		return nil, err
	}
	core, err := newCore()
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", location, err)
	}
	return &Bucket{core: core, URL: strings.TrimRight(location, "/"), Name: name, Prefix: prefix,
		patience: patience, Attempt: attempt, slots: make(chan struct{}, Slots)}, nil
}

// Where names the server and the folder.
func (b *Bucket) Where() string { return b.core.EndpointURL().String() + " " + b.Name + "/" + b.Prefix }

// try makes a call of op on key that moves n bytes.
func (b *Bucket) try(ctx context.Context, op, key string, n int64, call func(ctx context.Context) error) error {
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	limit := b.Attempt + time.Duration(n)*time.Second/slowest
	end := time.Now().Add(b.patience + limit - b.Attempt)
	for tries := 1; ; tries++ {
		actx, cancel := context.WithTimeout(ctx, limit)
		err := call(actx)
		cancel()
		if err == nil {
			return nil
		}
		wait := backoff(tries)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		// The signature covers the body, too: what was changed on its way is sent again.
		changed := n > 0 && tries < 3 && minio.ToErrorResponse(err).Code == minio.SignatureDoesNotMatch
		if !temporary(err) && !changed || time.Now().Add(wait).After(end) {
			return &Error{Op: op, URL: b.URL + "/" + key, Tries: tries, Err: err}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// backoff is how long to wait after the nth try: about twice as long as before, at random, so
// that many machines do not come back at once.
func backoff(n int) time.Duration {
	d := min(50*time.Millisecond<<min(n, 10), maxBackoff)
	return d/2 + rand.N(d/2)
}

// put writes an object of n bytes at offset off of r. The server checks the content.
func (b *Bucket) put(ctx context.Context, key string, r io.ReaderAt, off, n int64) error {
	sum, err := sumOf(r, off, n)
	if err != nil {
		return err
	}
	return b.try(ctx, "put", key, n, func(ctx context.Context) error {
		_, err := b.core.PutObject(ctx, b.Name, b.Prefix+key, io.NewSectionReader(r, off, n), n, "", sum, minio.PutObjectOptions{})
		return err
	})
}

// condition is what a put asks for. If it does not hold the error is fs.ErrExist. Some servers
// know no conditions: they put in any case.
type condition func(*minio.PutObjectOptions)

// Always asks for nothing.
func Always(*minio.PutObjectOptions) {}

// IfAbsent asks for the object not to be there.
func IfAbsent(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") }

// IfStill asks for the object to be there, as etag; where it is not there at all, the error is
// fs.ErrNotExist.
func IfStill(etag string) condition {
	return func(o *minio.PutObjectOptions) { o.SetMatchETag(etag) }
}

// PutBytes writes a small object.
func (b *Bucket) PutBytes(ctx context.Context, key string, data []byte, cond condition) error {
	sum, err := sumOf(bytes.NewReader(data), 0, int64(len(data)))
	if err != nil {
		return err
	}
	return b.try(ctx, "put", key, int64(len(data)), func(ctx context.Context) error {
		var o minio.PutObjectOptions
		cond(&o)
		_, err := b.core.PutObject(ctx, b.Name, b.Prefix+key, bytes.NewReader(data), int64(len(data)), "", sum, o)
		if status(err) == http.StatusNotImplemented {
			_, err = b.core.PutObject(ctx, b.Name, b.Prefix+key, bytes.NewReader(data), int64(len(data)), "", sum, minio.PutObjectOptions{})
		}
		return err
	})
}

// sumOf is the SHA-256 that S3 wants to know of what it is sent.
func sumOf(r io.ReaderAt, off, n int64) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, off, n)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Get fills p with the bytes of an object at off.
func (b *Bucket) Get(ctx context.Context, key string, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return b.try(ctx, "get", key, int64(len(p)), func(ctx context.Context) error {
		var o minio.GetObjectOptions
		if err := o.SetRange(off, off+int64(len(p))-1); err != nil {
			return err
		}
		body, _, _, err := b.core.GetObject(ctx, b.Name, b.Prefix+key, o)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.ReadFull(body, p)
		return err
	})
}

// GetAll returns a small object, of at most max bytes.
func (b *Bucket) GetAll(ctx context.Context, key string, max int64) (data []byte, err error) {
	err = b.try(ctx, "get", key, 0, func(ctx context.Context) error {
		body, info, _, err := b.core.GetObject(ctx, b.Name, b.Prefix+key, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer body.Close()
		if info.Size > max {
			return minio.ErrorResponse{StatusCode: http.StatusBadRequest, Message: fmt.Sprintf("%d bytes long, %d at most expected", info.Size, max)}
		}
		data = make([]byte, info.Size)
		_, err = io.ReadFull(body, data)
		return err
	})
	return data, err
}

// GetParsed hands a small object to parse. If that finds it damaged it is asked for again:
// bytes may go wrong on their way.
func (b *Bucket) GetParsed(ctx context.Context, key string, max int64, parse func([]byte) error) error {
	for tries := 1; ; tries++ {
		data, err := b.GetAll(ctx, key, max)
		if err != nil {
			return err
		}
		if err = parse(data); err == nil || tries == 3 {
			return err
		}
	}
}

// Object is an entry of a listing.
type Object struct {
	Key      string // without the bucket's prefix
	Size     int64
	Modified time.Time // by the server's clock
	ETag     string
}

// listPage is how many objects one request lists.
const listPage = 1000

// List calls fn for every object below a prefix whose key comes after a given one, in order.
// A listing that breaks off goes on where it was.
func (b *Bucket) List(ctx context.Context, below, after string, fn func(Object)) error {
	if after != "" {
		after = b.Prefix + after
	}
	for {
		n := 0
		err := b.try(ctx, "list", below, 0, func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx) // ends the iteration where we leave it
			defer cancel()
			for o := range b.core.ListObjectsIter(ctx, b.Name, minio.ListObjectsOptions{
				Prefix: b.Prefix + below, StartAfter: after, Recursive: true, MaxKeys: listPage}) {
				if o.Err != nil {
					return o.Err
				}
				after = o.Key
				fn(Object{Key: strings.TrimPrefix(o.Key, b.Prefix), Size: o.Size, Modified: o.LastModified, ETag: strings.Trim(o.ETag, `"`)})
				if n++; n == listPage {
					break
				}
			}
			return nil
		})
		if err != nil || n < listPage {
			return err
		}
	}
}

// Stat tells of one object, or fs.ErrNotExist.
func (b *Bucket) Stat(ctx context.Context, key string) (o Object, err error) {
	err = b.try(ctx, "look at", key, 0, func(ctx context.Context) error {
		info, err := b.core.StatObject(ctx, b.Name, b.Prefix+key, minio.StatObjectOptions{})
		o = Object{Key: key, Size: info.Size, Modified: info.LastModified, ETag: strings.Trim(info.ETag, `"`)}
		return err
	})
	return o, err
}

// Remove removes an object; one that is not there is no error.
func (b *Bucket) Remove(ctx context.Context, key string) error {
	err := b.try(ctx, "remove", key, 0, func(ctx context.Context) error {
		return b.core.RemoveObject(ctx, b.Name, b.Prefix+key, minio.RemoveObjectOptions{})
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
