package fusefs

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fs"
)

// cp(1) and others that use copy_file_range(2) do not move the bytes of images/NAME/image to
// restore/: the upload only notes which image of the store it is, and the restore reads that.

// sharedReader is an open image that several use; the last one closes it.
type sharedReader struct {
	*store.Reader
	users atomic.Int32
}

func newSharedReader(r *store.Reader) *sharedReader {
	s := &sharedReader{Reader: r}
	s.users.Store(1)
	return s
}

// share adds a user. The caller is one already.
func (s *sharedReader) share() *sharedReader {
	s.users.Add(1)
	return s
}

// release takes one user away.
func (s *sharedReader) release() error {
	if s.users.Add(-1) > 0 {
		return nil
	}
	return s.Close()
}

// CopyFileRange copies a part of a stored image into an upload. Other targets are left to the
// kernel, which then reads and writes.
func (n *savedFile) CopyFileRange(_ context.Context, from fs.FileHandle, offIn uint64, out *fs.Inode, to fs.FileHandle,
	offOut, size, _ uint64) (uint32, syscall.Errno) {
	in, ok := from.(*savedHandle)
	u, ok2 := to.(*uploadHandle)
	if !ok || !ok2 {
		return 0, syscall.EOPNOTSUPP
	}
	total := uint64(in.r.Size())
	if offIn >= total {
		return 0, 0
	}
	const most = 1 << 30 // the result is 32 bits
	done, err := u.u.copyFrom(in.r, int64(offIn), int64(offOut), int64(min(size, total-offIn, most)))
	if done == 0 && err != nil {
		return 0, neverEINTR(errno(err))
	}
	return uint32(done), 0
}

// copyFrom takes n bytes of a stored image at off: as a link to it if all before came from there.
func (u *upload) copyFrom(r *sharedReader, from, off, n int64) (int64, error) {
	if done, err := u.link(r, from, off, n); done || err != nil {
		return n, err
	}
	buf := make([]byte, 1<<20)
	done := int64(0)
	for done < n {
		b := buf[:min(int64(len(buf)), n-done)]
		if got, err := r.ReadAt(b, from+done); got < len(b) {
			return done, err
		}
		if err := u.write(b, off+done); err != nil {
			return done, err
		}
		done += int64(len(b))
	}
	return done, nil
}

// link notes that n bytes at off are those of an image. It reports whether that could be done.
func (u *upload) link(r *sharedReader, from, off, n int64) (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == uploadRestoring {
		return false, failf(syscall.EBUSY, "%s is being restored", u.name)
	}
	if u.over() && off == 0 {
		u.reset()
	}
	first := u.state == uploadEmpty && off == 0
	if from != off || !first && (u.linked != r || off != u.size) || u.over() {
		return false, nil
	}
	if first {
		u.linked = r.share()
		u.log.addf("what was copied is read from images/%s", r.Name())
	}
	return true, u.written(off, n)
}

// unlink copies what was linked so far: something else follows. Called with mu held.
func (u *upload) unlink() error {
	r := u.linked
	spool, err := u.f.tempFile()
	if err != nil {
		return err
	}
	if _, err = io.Copy(io.NewOffsetWriter(spool, 0), io.NewSectionReader(r, 0, u.size)); err != nil {
		return errors.Join(err, spool.Close())
	}
	u.linked, u.spool = nil, spool
	return r.release()
}
