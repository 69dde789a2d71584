package fusefs

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// savedNames gives the stored images inode numbers that follow them through renames, and
// remembers which of their files rm -r has removed so far: in the store they only exist
// together.
type savedNames struct {
	mu     sync.Mutex
	last   uint64
	byName map[string]*savedName
}

type savedName struct {
	id      uint64
	removed map[string]bool
	created time.Time // of the image that was opened; zero: none was
	read    bool      // to its end, at least once
}

// get returns the entry of a name. Called with mu held.
func (s *savedNames) get(name string) *savedName {
	e := s.byName[name]
	if e == nil {
		s.last++
		e = &savedName{id: s.last, removed: make(map[string]bool)}
		s.byName[name] = e
	}
	return e
}

// id returns the number of an image.
func (s *savedNames) id(name string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(name).id
}

// rename follows a rename in the store.
func (s *savedNames) rename(old, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName[name] = s.get(old)
	delete(s.byName, old)
}

// forget drops a name that is gone.
func (s *savedNames) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byName, name)
}

// remove marks a file of an image as removed; it fails if it is already.
func (s *savedNames) remove(name, file string) syscall.Errno {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.get(name)
	if e.removed[file] {
		return syscall.ENOENT
	}
	e.removed[file] = true
	return 0
}

// isRemoved reports whether rm has removed a file of an image.
func (s *savedNames) isRemoved(name, file string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[name]
	return e != nil && e.removed[file]
}

// imagesDir is images/: what the store holds.
type imagesDir struct {
	fs.Inode
	f *filesystem
}

func (d *imagesDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	setAttr(&out.Attr, 0o700, 0, 0, 0, time.Now())
	return 0
}

func (d *imagesDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	list, err := d.f.store.List()
	if err != nil {
		return nil, d.fail("images", err)
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return dirEntries(names, syscall.S_IFDIR), 0
}

func (d *imagesDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	im, err := d.f.store.Get(name)
	if err != nil {
		return nil, d.fail(name, err)
	}
	setAttr(&out.Attr, 0o700, 0, 0, 0, im.Created)
	n := &savedDir{d: d, name: name}
	return d.NewInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: ino(spaceSaved, d.f.saved.id(name), 0)}), 0
}

// Rename renames an image.
func (d *imagesDir) Rename(_ context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if _, ok := to.(*imagesDir); !ok {
		return syscall.EXDEV
	}
	if flags&^fs.RENAME_EXCHANGE != flags { // two images cannot change names in one step
		return syscall.EINVAL
	}
	if err := d.f.store.Rename(name, newName); err != nil {
		return d.fail(name, err)
	}
	d.f.saved.rename(name, newName)
	if c := d.GetChild(name); c != nil {
		if s, ok := c.Operations().(*savedDir); ok {
			s.rename(newName)
		}
	}
	return 0
}

// Unlink has nothing to do here: every entry is a directory.
func (d *imagesDir) Unlink(context.Context, string) syscall.Errno { return syscall.EISDIR }

// Rmdir removes an image from the store. Like any other directory it must be empty, so that
// rmdir by itself removes nothing that rm -r would not.
func (d *imagesDir) Rmdir(_ context.Context, name string) syscall.Errno {
	im, err := d.f.store.Get(name)
	if err != nil {
		return d.fail(name, err)
	}
	for _, file := range savedFiles(im) {
		if !d.f.saved.isRemoved(name, file) {
			return syscall.ENOTEMPTY
		}
	}
	if err := d.f.store.Remove(name); err != nil {
		return d.fail(name, err)
	}
	d.f.forgetImage(name)
	d.f.logf("image %s removed", name)
	d.f.collector.garbage()
	return 0
}

func (d *imagesDir) fail(name string, err error) syscall.Errno {
	e := errno(err)
	if e != syscall.ENOENT {
		d.f.logf("images/%s: %v", name, err)
	}
	return e
}

// savedFiles lists the files of an image's directory.
func savedFiles(im store.Image) []string {
	names := []string{"image"}
	for _, a := range im.Attachments {
		names = append(names, a.Name)
	}
	return names
}

// savedDir is images/NAME/.
type savedDir struct {
	fs.Inode
	d *imagesDir

	mu   sync.Mutex
	name string
}

func (n *savedDir) rename(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.name = name
}

// image returns what the store knows of this image, under the name it has now.
func (n *savedDir) image() (store.Image, syscall.Errno) {
	n.mu.Lock()
	name := n.name
	n.mu.Unlock()
	im, err := n.d.f.store.Get(name)
	if err != nil {
		return im, n.d.fail(name, err)
	}
	return im, 0
}

func (n *savedDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	im, e := n.image()
	setAttr(&out.Attr, 0o700, 0, 0, 0, im.Created)
	return e
}

// files lists what rm has not removed.
func (n *savedDir) files(im store.Image) []string {
	return slices.DeleteFunc(savedFiles(im), func(f string) bool { return n.d.f.saved.isRemoved(im.Name, f) })
}

func (n *savedDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	im, e := n.image()
	if e != 0 {
		return nil, e
	}
	return dirEntries(n.files(im), syscall.S_IFREG), 0
}

func (n *savedDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	im, e := n.image()
	if e != 0 {
		return nil, e
	}
	if name == templateName {
		return n.template(ctx, im, out), 0
	}
	if !slices.Contains(n.files(im), name) {
		return nil, syscall.ENOENT
	}
	part := slices.Index(savedFiles(im), name) + 1
	c := &savedFile{dir: n, name: name, size: savedSize(&im, name), time: im.Created, attached: part > 1}
	c.attr(&out.Attr)
	return n.NewInode(ctx, c, fs.StableAttr{Ino: ino(spaceSaved, n.d.f.saved.id(im.Name), uint8(part))}), 0
}

// Unlink hides a file until rmdir removes the image: the store keeps them together.
func (n *savedDir) Unlink(_ context.Context, name string) syscall.Errno {
	im, e := n.image()
	if e != 0 {
		return e
	}
	if !slices.Contains(savedFiles(im), name) {
		return syscall.ENOENT
	}
	return n.d.f.saved.remove(im.Name, name)
}

func (n *savedDir) Rmdir(context.Context, string) syscall.Errno { return syscall.ENOTDIR }

// Rename keeps the files of an image where they are; mv to elsewhere copies and unlinks.
func (n *savedDir) Rename(_ context.Context, _ string, to fs.InodeEmbedder, _ string, _ uint32) syscall.Errno {
	if to != fs.InodeEmbedder(n) {
		return syscall.EXDEV
	}
	return syscall.EPERM
}

// savedFile is a file of a stored image. Its size never changes.
type savedFile struct {
	fs.Inode
	dir      *savedDir
	name     string
	size     int64
	time     time.Time
	attached bool
}

func (n *savedFile) attr(a *fuse.Attr) { setAttr(a, 0o400, n.size, 0, 0, n.time) }

func (n *savedFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

func (n *savedFile) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	im, e := n.dir.image()
	if e != 0 {
		return nil, 0, e
	}
	r, err := n.dir.d.f.store.OpenImage(im.Name)
	if err != nil {
		return nil, 0, n.dir.d.fail(im.Name, err)
	}
	if !n.attached {
		return &savedHandle{f: n.dir.d.f, r: newSharedReader(r), dir: n.dir}, n.dir.d.f.saved.openFlags(&im), 0
	}
	b, err := r.Attachment(n.name)
	if err == nil && n.name == infoName {
		im = r.Image() // as it was opened
		b, err = infoText(&im, b, n.dir.d.f.templates.bytes(n.dir.d.f.saved.id(im.Name)))
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, 0, n.dir.d.fail(im.Name+"/"+n.name, err)
	}
	return &textHandle{b}, fuse.FOPEN_DIRECT_IO, 0
}

// savedHandle is an open image of the store; it can be read even after its removal.
type savedHandle struct {
	f      *filesystem
	r      *sharedReader
	dir    *savedDir
	readTo atomic.Int64 // how far it was read without a gap
}

func (h *savedHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= h.r.Size() {
		return fuse.ReadResultData(nil), 0
	}
	dest = dest[:min(int64(len(dest)), h.r.Size()-off)]
	res, err := gather(h.r.Reader, dest, off)
	if err != nil {
		h.f.logf("images/%s: read at %d: %v", h.r.Name(), off, err)
		return nil, neverEINTR(errno(err))
	}
	h.readSome(off, off+int64(len(dest)))
	return res, 0
}

func (h *savedHandle) Release(context.Context) syscall.Errno {
	if err := h.r.release(); err != nil {
		h.f.logf("images/%s: %v", h.r.Name(), err)
	}
	return 0
}
