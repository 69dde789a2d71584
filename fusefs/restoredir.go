package fusefs

import (
	"cmp"
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// uploads are the entries of restore/, by name.
type uploads struct {
	mu     sync.Mutex
	byName map[string]*upload
}

func (s *uploads) get(name string) *upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name]
}

// list returns all uploads, oldest first.
func (s *uploads) list() []*upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*upload, 0, len(s.byName))
	for _, u := range s.byName {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b *upload) int { return cmp.Compare(a.id, b.id) })
	return out
}

// The files beside an upload; the order is their part of the inode number.
var siblings = [...]string{".status", ".log", ".out"}

// sibling splits NAME.status and the like. part is 0 for any other name.
func sibling(name string) (base string, part int) {
	for i, s := range siblings {
		if b, ok := strings.CutSuffix(name, s); ok && b != "" {
			return b, i + 1
		}
	}
	return name, 0
}

// restoreDir is restore/ or restore/lazy/.
type restoreDir struct {
	fs.Inode
	f    *filesystem
	s    *uploads
	lazy bool
}

func (d *restoreDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	setAttr(&out.Attr, 0o700, 0, 0, 0, time.Now())
	return 0
}

func (d *restoreDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var names []string
	for _, u := range d.s.list() {
		names = append(names, u.names()...)
	}
	return dirEntries(names, syscall.S_IFREG), 0
}

// names lists an upload and the files beside it that exist.
func (u *upload) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	names := []string{u.name, u.name + ".status", u.name + ".log"}
	if _, err := os.Stat(u.outPath); u.outPath != "" && err == nil {
		names = append(names, u.name+".out")
	}
	return names
}

func (d *restoreDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if sub := d.lookupLazy(ctx, name, out); sub != nil {
		return sub, 0
	}
	base, part := sibling(name)
	u := d.s.get(base)
	if u == nil || !slices.Contains(u.names(), name) {
		return nil, syscall.ENOENT
	}
	attr := fs.StableAttr{Ino: ino(spaceUpload, u.id, uint8(part))}
	if part == 0 {
		n := &uploadNode{u: u}
		n.attr(&out.Attr)
		return d.NewInode(ctx, n, attr), 0
	}
	n := u.sibling(part)
	n.attr(nil, &out.Attr)
	return d.NewInode(ctx, n, attr), 0
}

// sibling makes the node of NAME.status, NAME.log or NAME.out.
func (u *upload) sibling(part int) *textNode {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := &textNode{mode: 0o400, time: u.changed, logf: u.f.logf}
	var read func() ([]byte, error)
	switch siblings[part-1] {
	case ".status":
		read = u.status
	case ".log":
		l := u.log
		read = func() ([]byte, error) { return []byte(l.String()), nil }
	case ".out":
		path := u.outPath
		read = func() ([]byte, error) { return readTail(path, maxOut) }
		n.size = func() int64 { return tailSize(path, maxOut) }
	}
	n.text = func(context.Context) ([]byte, error) { return read() }
	if n.size == nil {
		n.size = func() int64 {
			b, _ := read() // made of what is in memory
			return int64(len(b))
		}
	}
	return n
}

// maxOut bounds what is read of a NAME.out at once, bytes: the last part counts.
const maxOut = 16 << 20

// readTail reads the last limit bytes of a file.
func readTail(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size()-limit)
	return io.ReadAll(io.NewSectionReader(f, from, st.Size()-from))
}

// tailSize is the length of what readTail returns.
func tailSize(path string, limit int64) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return min(st.Size(), limit)
}

// Create starts an upload.
func (d *restoreDir) Create(ctx context.Context, name string, _ uint32, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if _, part := sibling(name); part != 0 { // these names belong to the results
		return nil, nil, 0, syscall.EINVAL
	}
	s := d.s
	s.mu.Lock()
	u := s.byName[name]
	if u == nil {
		u = &upload{f: d.f, set: s, id: d.f.lastUpload.Add(1), name: name, lazy: d.lazy}
		u.reset()
		s.byName[name] = u
	}
	s.mu.Unlock()
	n := &uploadNode{u: u}
	n.attr(&out.Attr)
	return d.NewInode(ctx, n, fs.StableAttr{Ino: ino(spaceUpload, u.id, 0)}), &uploadHandle{u}, fuse.FOPEN_DIRECT_IO, 0
}

// Unlink forgets an upload and what became of it. The restored tree is not touched.
func (d *restoreDir) Unlink(_ context.Context, name string) syscall.Errno {
	base, part := sibling(name)
	u := d.s.get(base)
	switch {
	case u == nil:
		if part != 0 {
			return 0 // rm -r has removed its upload before
		}
		return syscall.ENOENT
	case part != 0:
		return syscall.EPERM // they go with their upload
	}
	return d.f.forget(u)
}

// forget drops an upload, unless it is just being restored.
func (f *filesystem) forget(u *upload) syscall.Errno {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == uploadRestoring {
		return syscall.EBUSY
	}
	u.closeSpool()
	if u.outPath != "" {
		_ = os.Remove(u.outPath) // the tree may still write to it; it need not exist either
	}
	u.set.mu.Lock()
	defer u.set.mu.Unlock()
	delete(u.set.byName, u.name)
	return 0
}

// Rmdir has nothing to do here.
func (d *restoreDir) Rmdir(_ context.Context, name string) syscall.Errno {
	if !d.lazy && name == lazyName {
		return syscall.EPERM
	}
	return syscall.ENOTDIR
}

// Rename gives an upload another name: rsync uploads to a temporary one. An upload of that
// name is forgotten, as with any file.
func (d *restoreDir) Rename(_ context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if other, ok := to.(*restoreDir); !ok || other.s != d.s {
		return syscall.EXDEV
	}
	_, part := sibling(name)
	_, newPart := sibling(newName)
	switch u, old := d.s.get(name), d.s.get(newName); {
	case part != 0 || newPart != 0 || !d.lazy && (name == lazyName || newName == lazyName):
		return syscall.EPERM
	case u == nil:
		return syscall.ENOENT
	case flags&fs.RENAME_EXCHANGE != 0:
		return syscall.EINVAL
	case u == old:
		return 0
	case old != nil && flags != 0: // RENAME_NOREPLACE
		return syscall.EEXIST
	case old != nil:
		if e := d.f.forget(old); e != 0 {
			return e
		}
		fallthrough
	default:
		u.rename(newName)
		return 0
	}
}

func (u *upload) rename(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set.mu.Lock()
	defer u.set.mu.Unlock()
	delete(u.set.byName, u.name)
	u.name = name
	u.set.byName[name] = u
}

// uploadNode is restore/NAME.
type uploadNode struct {
	fs.Inode
	u *upload
}

// uploadHandle is an open upload.
type uploadHandle struct{ u *upload }

func (n *uploadNode) attr(a *fuse.Attr) {
	n.u.mu.Lock()
	defer n.u.mu.Unlock()
	setAttr(a, 0o600, n.u.size, 0, 0, n.u.changed)
}

func (n *uploadNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// Setattr sets the size and silently accepts owner, mode and times: cp -a, tar and rsync set
// them and fail if they cannot.
func (n *uploadNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.u.truncate(int64(size)); err != nil {
			return neverEINTR(errno(err))
		}
	}
	n.attr(&out.Attr)
	return 0
}

// Setxattr says what a filesystem without access control lists says, which cp -a and install
// take for an answer.
func (n *uploadNode) Setxattr(context.Context, string, []byte, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

func (n *uploadNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		n.u.mu.Lock()
		defer n.u.mu.Unlock()
		if n.u.state == uploadRestoring {
			return nil, 0, syscall.EBUSY
		}
	}
	return &uploadHandle{n.u}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *uploadHandle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if err := h.u.write(data, off); err != nil {
		return 0, neverEINTR(errno(err))
	}
	return uint32(len(data)), 0
}

func (h *uploadHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.u.readAt(dest, off)
	if err != nil {
		return nil, neverEINTR(errno(err))
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Flush restores the image if this close has completed it.
func (h *uploadHandle) Flush(ctx context.Context) syscall.Errno {
	c, ok := fuse.FromContext(ctx)
	if !ok {
		return syscall.EIO
	}
	uid := int(c.Uid)
	if uid == 0 {
		uid = -1
	}
	return h.u.flush(int(c.Pid), uid)
}

// Fsync has nothing to make durable: the result of an upload is a running tree.
func (h *uploadHandle) Fsync(context.Context, uint32) syscall.Errno { return 0 }

func (h *uploadHandle) Release(context.Context) syscall.Errno {
	h.u.release()
	return 0
}
