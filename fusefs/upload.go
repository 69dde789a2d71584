package fusefs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// uploadState is how far an upload is.
type uploadState string

// The states of an upload, as NAME.status shows them.
const (
	uploadEmpty     uploadState = "empty"     // nothing was written yet
	uploadPartial   uploadState = "partial"   // something was, and it may go on
	uploadRestoring uploadState = "restoring" // it is complete and being restored
	uploadRestored  uploadState = "restored"  // the tree runs
	uploadFailed    uploadState = "failed"    // it could not be restored, or is no image
)

// upload is restore/NAME: an image that is being written, and what became of it.
type upload struct {
	f    *filesystem
	set  *uploads // that it is one of
	id   uint64
	lazy bool // its memory comes later

	mu       sync.Mutex
	name     string
	changed  time.Time
	state    uploadState
	spool    *os.File      // without a name; nil before the first write and after the restore
	linked   *sharedReader // in its place: the image of the store that this is a copy of, so far
	size     int64         // st_size
	have     extents
	want     int64 // size of the image as its header says; 0: not known yet
	packed   bool  // zstd or gzip: the size is only known at the end
	checked  bool  // the head was seen to be that of an image
	tried    int64 // packed: bytes that were there when it was last found incomplete
	killed   bool  // a writer died of a signal: nothing will be restored
	done     chan struct{}
	errno    syscall.Errno
	err      error
	result   *Restored
	log      *lines
	progress *LazyProgress // of the last lazy restore, or nil
	outPath  string        // of NAME.out, "" before a restore
}

// uploadStatus is NAME.status.
type uploadStatus struct {
	Name  string      `json:"name"`
	State uploadState `json:"state"`
	Bytes int64       `json:"bytes"`           // written
	Want  int64       `json:"want,omitempty"`  // size of the image, if its header says
	Errno string      `json:"errno,omitempty"` // what close(2) returned
	Error string      `json:"error,omitempty"`
	*Restored

	Lazy *LazyProgress `json:"lazy,omitempty"` // of a restored tree whose memory comes later
}

func (u *upload) status() ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := uploadStatus{Name: u.name, State: u.state, Bytes: u.size, Want: u.want, Restored: u.result}
	if u.err != nil {
		s.Error = u.err.Error()
	}
	if u.state == uploadRestored {
		s.Lazy = u.progress
	}
	if u.errno != 0 {
		s.Errno = unix.ErrnoName(u.errno)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	return append(b, '\n'), err
}

// reset starts the upload anew. Called with mu held and nothing being restored.
func (u *upload) reset() {
	u.closeSpool()
	u.state, u.size, u.have, u.want = uploadEmpty, 0, nil, 0
	u.packed, u.checked, u.killed, u.tried = false, false, false, 0
	u.errno, u.err, u.result, u.progress = 0, nil, nil, nil
	u.changed = time.Now()
	u.log = &lines{}
}

func (u *upload) closeSpool() {
	if u.spool != nil {
		_ = u.spool.Close() // it is unlinked: nothing of it is to be kept
		u.spool = nil
	}
	if u.linked != nil {
		_ = u.linked.release() // it was only read
		u.linked = nil
	}
}

// content is what was written, or nil if that is not kept.
func (u *upload) content() io.ReaderAt {
	switch {
	case u.linked != nil:
		return u.linked
	case u.spool != nil:
		return u.spool
	}
	return nil
}

// over reports whether nothing more will happen to what was written so far.
func (u *upload) over() bool { return u.state == uploadRestored || u.state == uploadFailed }

// write takes bytes in any order. Writing to an upload whose restore is over starts a new one.
func (u *upload) write(data []byte, off int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.state == uploadRestoring:
		return failf(syscall.EBUSY, "%s is being restored", u.name)
	case u.state == uploadFailed && u.content() != nil: // refused in mid-upload
		return u.err
	case u.state == uploadRestored && off > 0 && off == u.size: // a writer that goes on
		return u.writeBehind(data)
	case u.over():
		u.reset()
	}
	err := u.openSpool()
	if err == nil {
		_, err = u.spool.WriteAt(data, off)
	}
	if err != nil { // a full disk: the rest may still come once there is room
		u.state, u.err = uploadPartial, fmt.Errorf("keeping the upload in %s: %w", u.f.spool, err)
		u.f.logf("restore/%s: %v", u.name, u.err)
		return u.err
	}
	return u.written(off, int64(len(data)))
}

// written notes that n bytes at off are there.
func (u *upload) written(off, n int64) error {
	u.have.add(span{off, off + n})
	u.size = max(u.size, off+n)
	u.state, u.err, u.changed = uploadPartial, nil, time.Now()
	if err := u.check(); err != nil {
		u.fail(err)
		return err
	}
	return nil
}

// writeBehind takes what comes after an image that was complete, and restored, at an earlier
// close: zeros are padding, as at the end of any image.
func (u *upload) writeBehind(data []byte) error {
	for _, b := range data {
		if b != 0 {
			return failf(syscall.EINVAL, "%s was complete and is restored; what is written behind its end is no padding", u.name)
		}
	}
	u.size += int64(len(data))
	return nil
}

func (u *upload) openSpool() error {
	if u.linked != nil {
		return u.unlink()
	}
	if u.spool != nil {
		return nil
	}
	var err error
	u.spool, err = u.f.tempFile()
	return err
}

// magicLen is how many bytes tell an image, zstd or gzip from anything else.
const magicLen = 8

// check looks at the head once it is there, so that what is no image fails at once.
func (u *upload) check() error {
	n := u.have.whole()
	if u.checked || n < magicLen {
		return nil
	}
	var head [4]byte
	if _, err := u.content().ReadAt(head[:], 0); err != nil {
		return err
	}
	if isPacked(head) {
		u.packed, u.checked = true, true
		return nil
	}
	_, err := image.Open(u.content(), n)
	var cut *image.CutError
	if errors.As(err, &cut) {
		// In mid-header only a lower bound is known.
		u.checked = n >= image.PageSize
		u.want = cut.Want
		return nil
	}
	u.checked = true
	return err // with no error it is complete already: FLUSH opens it again
}

// isPacked reports whether a file that begins so is compressed with zstd or gzip.
func isPacked(head [4]byte) bool {
	return head == [4]byte{0x28, 0xb5, 0x2f, 0xfd} || head[0] == 0x1f && head[1] == 0x8b
}

// fail ends the upload with an error. Called with mu held.
func (u *upload) fail(err error) {
	u.state, u.err, u.errno = uploadFailed, err, neverEINTR(errno(err))
	u.log.addf("failed: %v", err)
	u.f.logf("restore/%s: %v", u.name, err)
}

// truncate sets the size, as ftruncate(2) or open(2) with O_TRUNC.
func (u *upload) truncate(size int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.state == uploadRestoring:
		return failf(syscall.EBUSY, "%s is being restored", u.name)
	case size == 0:
		u.reset()
		return nil
	case u.over() || u.content() == nil:
		return nil // rsync --inplace sets the size it has written
	}
	if err := u.openSpool(); err != nil {
		return err
	}
	if err := u.spool.Truncate(size); err != nil {
		return err
	}
	u.have.cut(size)
	u.size = size
	return nil
}

// readAt reads back what was written, as long as it is there.
func (u *upload) readAt(p []byte, off int64) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if off >= u.size {
		return 0, nil
	}
	if u.content() == nil {
		return 0, failf(syscall.ENODATA, "%s was restored and its bytes are no longer kept", u.name)
	}
	n, err := u.content().ReadAt(p[:min(int64(len(p)), u.size-off)], off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// flush is a close of one descriptor, by thread tid: it restores the image if it is complete.
// The result is what every later flush returns as well.
func (u *upload) flush(tid int, caller int) syscall.Errno {
	u.mu.Lock()
	for u.state == uploadRestoring {
		done := u.done
		u.mu.Unlock()
		<-done // a restore has a deadline
		u.mu.Lock()
	}
	if u.over() || u.size == 0 {
		defer u.mu.Unlock()
		return u.errno
	}
	if p, err := readProcess(tid); err == nil && p.flags&pfSignaled != 0 && p.flags&pfExiting != 0 {
		u.killed = true
		u.log.addf("process %d was killed while it wrote; nothing is restored", p.tgid)
	}
	if u.killed || !u.maybeComplete() {
		defer u.mu.Unlock()
		return 0
	}
	u.state, u.done = uploadRestoring, make(chan struct{})
	content, size := u.content(), u.size
	u.mu.Unlock()
	res, err := u.restore(content, size, caller)
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.restored(res, err)
}

// maybeComplete reports whether all bytes are there, as far as that can be told before
// looking into a compressed image. Called with mu held.
func (u *upload) maybeComplete() bool {
	whole := u.have.whole()
	if whole != u.size && u.have[len(u.have)-1].end != whole {
		return false // there is a hole
	}
	if u.packed {
		return whole != u.tried
	}
	return u.checked && whole >= u.want
}

// restore verifies and restores what was written. It runs without the lock: status and
// log can be read meanwhile.
func (u *upload) restore(content io.ReaderAt, size int64, caller int) (*Restored, error) {
	ctx, cancel := context.WithTimeout(u.f.ctx, u.f.timeout)
	defer cancel()
	plain, n, closer, err := image.Plain(content, size, u.f.tempFile)
	if err != nil {
		return nil, err
	}
	if closer != nil {
		defer closer.Close() // only read
	}
	r, err := u.open(plain, n)
	if err != nil {
		return nil, err
	}
	shared := u.f.templates.of(r.Root())
	if u.lazy {
		shared = nil // its memory comes another way
	}
	if _, stored := content.(*sharedReader); !u.lazy && (!stored || shared == nil) { // else it was verified for the template, and the store checks what it reads
		if err := r.Verify(ctx, func(int64, int64) {}); err != nil {
			return nil, err
		}
	}
	u.mu.Lock()
	u.outPath = filepath.Join(u.f.spool, fmt.Sprintf("%.100s.%d.out", u.name, time.Now().UnixNano())) // a tree of an earlier mount may still write to its own
	o := RestoreOptions{OutPath: u.outPath, CallerUID: caller, Log: u.log.add, Policy: u.f.policies.forRestore(r.Manifest), Template: shared}
	if o.Lazy = u.lazyOptions(plain, n); o.Lazy != nil {
		u.log.addf("image %s, %d bytes; each part is verified when it is read", r.Root(), n)
	} else {
		u.log.addf("image %s verified, %d bytes", r.Root(), n)
	}
	u.mu.Unlock()
	return u.f.engine.Restore(ctx, r, o)
}

// restored records the outcome. Called with mu held.
func (u *upload) restored(res *Restored, err error) syscall.Errno {
	defer close(u.done)
	u.changed = time.Now()
	if u.packed && errors.Is(err, image.ErrCut) { // more may come, this was one of several closes
		u.state, u.tried = uploadPartial, u.have.whole()
		return 0
	}
	if err != nil {
		u.fail(err)
		u.closeSpool()
		return u.errno
	}
	u.state, u.result = uploadRestored, res
	for _, w := range res.Warnings {
		u.log.add(w)
	}
	for _, l := range res.Lost {
		u.log.add(l.String())
	}
	u.log.addf("restored: %d processes, the root is pid %d", len(res.PIDs), res.Root)
	u.f.logf("restore/%s: restored, root pid %d", u.name, res.Root)
	u.closeSpool()
	return 0
}

// release is the last close of a descriptor: an upload that is cut off is recorded.
func (u *upload) release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == uploadFailed {
		u.closeSpool() // the next write starts anew
	}
	if u.state != uploadPartial || u.err != nil {
		return
	}
	want := "an unknown number of"
	if u.want > 0 {
		want = fmt.Sprint(u.want)
	}
	u.err = fmt.Errorf("cut off at %d of %s bytes; nothing was restored, write it again", u.have.whole(), want)
	if u.killed {
		u.err = errors.New("its writer was killed; nothing was restored, write it again")
	}
	u.log.add(u.err.Error())
	u.f.logf("restore/%s: %v", u.name, u.err)
}
