package bucket

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"
)

// partSize is the size of the parts of a pack's upload; S3 wants 5 MiB at least.
const partSize = 8 << 20

// Upload sends a pack while it is being written, part by part. Its bytes come from
// the local file, so nothing of it is in memory.
type Upload struct {
	b      *Bucket
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	r      io.ReaderAt
	wg     sync.WaitGroup
	begin  sync.Once

	mu    sync.Mutex
	id    string // of the multipart upload, "" if there is none
	sent  int64  // bytes that a part has been given
	parts []minio.CompletePart
	err   error
}

// NewUpload begins the upload of what is being written into r.
func (b *Bucket) NewUpload(ctx context.Context, key string, r io.ReaderAt) *Upload {
	u := &Upload{b: b, key: key, r: r}
	u.ctx, u.cancel = context.WithCancel(ctx)
	return u
}

// Advance says that all bytes before end are written and stay. It does not wait.
func (u *Upload) Advance(end int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for u.err == nil && end-u.sent >= partSize {
		u.start(partSize)
	}
}

// start sends the next n bytes. Called with mu held.
func (u *Upload) start(n int64) {
	off, number := u.sent, len(u.parts)+1
	u.sent += n
	u.parts = append(u.parts, minio.CompletePart{PartNumber: number})
	u.wg.Go(func() {
		tag, err := u.part(number, off, n)
		u.mu.Lock()
		defer u.mu.Unlock()
		u.parts[number-1].ETag = tag
		if err != nil && u.err == nil {
			u.err = err
		}
	})
}

func (u *Upload) part(number int, off, n int64) (tag string, err error) {
	u.begin.Do(func() {
		err = u.b.try(u.ctx, "begin the upload of", u.key, 0, func(ctx context.Context) error {
			id, err := u.b.core.NewMultipartUpload(ctx, u.b.Name, u.b.Prefix+u.key, minio.PutObjectOptions{})
			u.mu.Lock()
			defer u.mu.Unlock()
			u.id = id
			return err
		})
	})
	if err != nil {
		return "", err
	}
	u.mu.Lock()
	id := u.id
	u.mu.Unlock()
	if id == "" {
		return "", errors.New("the upload did not begin")
	}
	sum, err := sumOf(u.r, off, n)
	if err != nil {
		return "", err
	}
	err = u.b.try(u.ctx, "put a part of", u.key, n, func(ctx context.Context) error {
		p, err := u.b.core.PutObjectPart(ctx, u.b.Name, u.b.Prefix+u.key, id, number,
			io.NewSectionReader(u.r, off, n), n, minio.PutObjectPartOptions{Sha256Hex: sum})
		tag = p.ETag
		return err
	})
	return tag, err
}

// Finish sends what is left of size bytes and makes the object visible.
func (u *Upload) Finish(size int64) error {
	defer u.cancel()
	u.mu.Lock()
	if len(u.parts) == 0 {
		u.mu.Unlock()
		return u.b.put(u.ctx, u.key, u.r, 0, size)
	}
	if left := size - u.sent; left > 0 && u.err == nil {
		u.start(left)
	}
	u.mu.Unlock()
	u.wg.Wait()
	if u.err != nil {
		u.abort()
		return u.err
	}
	err := u.b.try(u.ctx, "end the upload of", u.key, 0, func(ctx context.Context) error {
		_, err := u.b.core.CompleteMultipartUpload(ctx, u.b.Name, u.b.Prefix+u.key, u.id, u.parts, minio.PutObjectOptions{})
		return err
	})
	if err == nil {
		return nil
	}
	// The answer to a try that succeeded may have been lost: the next one then finds nothing.
	if o, serr := u.b.Stat(u.ctx, u.key); serr == nil && o.Size == size {
		return nil
	} else if !errors.Is(serr, fs.ErrNotExist) {
		err = errors.Join(err, serr)
	}
	u.abort()
	return err
}

// Drop gives the upload up.
func (u *Upload) Drop() {
	u.cancel()
	u.wg.Wait()
	u.abort()
}

// abort removes the parts from the server. What it cannot remove, a later GC does.
func (u *Upload) abort() {
	if u.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), u.b.Attempt)
	defer cancel()
	_ = u.b.AbortUpload(ctx, u.b.Prefix+u.key, u.id)
	u.id = ""
}

// Uploads lists the uploads below a prefix that nobody has ended.
func (b *Bucket) Uploads(ctx context.Context, below string) <-chan minio.ObjectMultipartInfo {
	return b.core.ListIncompleteUploads(ctx, b.Name, b.Prefix+below, true)
}

// AbortUpload removes the parts of an upload. name is the whole key.
func (b *Bucket) AbortUpload(ctx context.Context, name, id string) error {
	err := b.try(ctx, "give up the upload of", strings.TrimPrefix(name, b.Prefix), 0, func(ctx context.Context) error {
		return b.core.AbortMultipartUpload(ctx, b.Name, name, id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
