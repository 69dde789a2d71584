package fusefs

import (
	"context"
	"io"
	"sync"
	"syscall"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// restore/lazy/ is a directory like restore/: the trees of images that are written there run at once,
// and their memory comes later (package restore/lazy). An image is then not verified as a whole before
// the restore; each part is when it is read. Like an image in ckpt/ it is found by name and not listed:
// rm -r restore/* means what was written there.

// LazyOptions make a restore lazy.
type LazyOptions struct {
	Name    string      // of the upload, for people
	Image   io.ReaderAt // where memory comes from; an *os.File need not stay open when Restore returns
	Size    int64
	Log     func(string)       // takes what goes wrong later
	Report  func(LazyProgress) // takes how far it is
	Release func()             // is called when Image is needed no more, also after an error
}

// LazyProgress is how far a lazy restore is.
type LazyProgress struct {
	Server  int    `json:"server"`  // pid of the process that brings the memory
	PIDs    []int  `json:"pids"`    // of processes that miss some
	Missing int64  `json:"missing"` // bytes that have not come yet
	Total   int64  `json:"total"`   // bytes that were missing at first
	Failed  int64  `json:"failed"`  // bytes that could not be had: SIGBUS for who touches them
	Done    bool   `json:"done"`    // all has come that will
	Log     string `json:"log"`     // what goes wrong stands there, too
}

// lazyName is the name of the directory in restore/.
const lazyName = "lazy"

// OnAdd puts lazy/ into restore/.
func (d *restoreDir) OnAdd(ctx context.Context) {
	if d.lazy {
		return
	}
	sub := &restoreDir{f: d.f, s: &d.f.lazyUploads, lazy: true}
	d.AddChild(lazyName, d.NewPersistentInode(ctx, sub, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: ino(spaceFixed, 0, 5)}), true)
}

// lookupLazy finds lazy/.
func (d *restoreDir) lookupLazy(ctx context.Context, name string, out *fuse.EntryOut) *fs.Inode {
	child := d.GetChild(name)
	if d.lazy || name != lazyName || child == nil {
		return nil
	}
	var a fuse.AttrOut
	d.Getattr(ctx, nil, &a) // it looks like this one, and never fails
	out.Attr = a.Attr
	return child
}

// lazyOptions prepares the lazy restore of what was written. Called with mu held.
func (u *upload) lazyOptions(plain io.ReaderAt, size int64) *LazyOptions {
	if !u.lazy {
		return nil
	}
	p := &LazyProgress{PIDs: []int{}}
	u.progress = p
	o := &LazyOptions{Name: "restore/" + lazyName + "/" + u.name, Image: plain, Size: size, Release: func() {}}
	log := u.log
	o.Log = func(s string) {
		log.add(s)
		u.f.logf("%s: %s", o.Name, s)
	}
	o.Report = func(now LazyProgress) {
		u.mu.Lock()
		defer u.mu.Unlock()
		if now.Done && !p.Done {
			log.addf("all memory has come")
		}
		*p = now
	}
	if u.linked != nil && plain == io.ReaderAt(u.linked) {
		r := u.linked.share()
		o.Release = sync.OnceFunc(func() { _ = r.release() }) // it was only read
	}
	return o
}

// open opens an image that is about to be restored. A lazy restore verifies it as it reads.
func (u *upload) open(plain io.ReaderAt, n int64) (*image.Reader, error) {
	if u.lazy {
		return image.OpenChecked(plain, n)
	}
	return image.Open(plain, n)
}
