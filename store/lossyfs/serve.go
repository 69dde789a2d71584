package lossyfs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// server answers the kernel. What it does not know the default refuses with ENOSYS.
type server struct {
	fuse.RawFileSystem
	fs *FS
}

// forever is how long the kernel may remember: nobody else changes anything.
const forever = time.Hour

func (s *server) String() string { return "lossyfs" }

// in runs do on a node with the lock held, unless the power is gone.
func (s *server) in(id uint64, do func(n *node) error) fuse.Status {
	s.fs.mu.Lock()
	defer s.fs.mu.Unlock()
	n := s.fs.nodes[id]
	switch {
	case s.fs.gone:
		return fuse.EIO
	case n == nil:
		return fuse.Status(syscall.ESTALE)
	}
	return fuse.ToStatus(do(n))
}

func (n *node) attr(a *fuse.Attr) {
	*a = fuse.Attr{Ino: n.id, Mode: n.mode, Nlink: max(n.links, 1), Size: uint64(len(n.data)), Blksize: 4096}
	a.Blocks = (a.Size + sector - 1) / sector
}

func (n *node) entry(out *fuse.EntryOut) {
	out.NodeId = n.id
	n.attr(&out.Attr)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

func (s *server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return s.in(h.NodeId, func(dir *node) error {
		n := dir.entries[name]
		if n == nil {
			return syscall.ENOENT
		}
		n.entry(out)
		return nil
	})
}

func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.in(in.NodeId, func(n *node) error {
		n.attr(&out.Attr)
		out.SetTimeout(forever)
		return nil
	})
}

func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.in(in.NodeId, func(n *node) (err error) {
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&syscall.S_IFMT | mode&0o7777
		}
		if size, ok := in.GetSize(); ok {
			w := write{off: int64(size)}
			err = s.fs.change(fmt.Sprintf("truncate %s to %d", n.label, size), func() { n.put(w) })
		}
		n.attr(&out.Attr)
		out.SetTimeout(forever)
		return err
	})
}

// create makes a file or folder.
func (s *server) create(dir uint64, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	return s.in(dir, func(d *node) error {
		if d.entries[name] != nil {
			return syscall.EEXIST
		}
		return s.fs.change("create "+name, func() {
			n := s.fs.add(mode)
			d.bind(rebind{{name, n}})
			n.entry(out)
		})
	})
}

func (s *server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.create(in.NodeId, name, syscall.S_IFDIR|in.Mode&0o7777, out)
}

func (s *server) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return s.create(in.NodeId, name, syscall.S_IFREG|in.Mode&0o7777, &out.EntryOut)
}

func (s *server) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.in(in.NodeId, func(d *node) error {
		n := s.fs.nodes[in.Oldnodeid]
		if d.entries[name] != nil || n == nil {
			return syscall.EEXIST
		}
		return s.fs.change("link "+name, func() {
			d.bind(rebind{{name, n}})
			n.entry(out)
		})
	})
}

func (s *server) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.in(h.NodeId, func(d *node) error {
		n := d.entries[name]
		switch {
		case n == nil:
			return syscall.ENOENT
		case len(n.entries) > 0:
			return syscall.ENOTEMPTY
		}
		return s.fs.change("remove "+name, func() { d.bind(rebind{{name, nil}}) })
	})
}

func (s *server) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.Unlink(cancel, h, name) // the kernel has seen to it that it is a folder
}

// Rename works within a folder: whether a rename across two is atomic is another story.
func (s *server) Rename(_ <-chan struct{}, in *fuse.RenameIn, old, name string) fuse.Status {
	return s.in(in.NodeId, func(d *node) error {
		n := d.entries[old]
		switch {
		case in.Newdir != in.NodeId:
			return syscall.EXDEV
		case in.Flags != 0:
			return syscall.EINVAL
		case n == nil:
			return syscall.ENOENT
		case d.entries[name] != nil && len(d.entries[name].entries) > 0:
			return syscall.ENOTEMPTY
		}
		return s.fs.change("rename "+old+" to "+name, func() { d.bind(rebind{{old, nil}, {name, n}}) })
	})
}

// Open does without the kernel's page cache: every write is a request.
func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return s.in(in.NodeId, func(*node) error { return nil })
}

func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	got := 0
	st := s.in(in.NodeId, func(n *node) error {
		if in.Offset < uint64(len(n.data)) {
			got = copy(buf, n.data[in.Offset:])
		}
		return nil
	})
	return fuse.ReadResultData(buf[:got]), st
}

func (s *server) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	w := write{int64(in.Offset), append([]byte{}, data...)}
	return uint32(len(data)), s.in(in.NodeId, func(n *node) error {
		return s.fs.change(fmt.Sprintf("write %d at %d of %s", len(data), in.Offset, n.label), func() { n.put(w) })
	})
}

func (s *server) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return s.in(in.NodeId, func(*node) error { return nil })
}

func (s *server) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.in(in.NodeId, func(n *node) error {
		return s.fs.change("sync "+cmp.Or(n.label, "/"), func() { s.fs.sync(n) })
	})
}

func (s *server) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.Fsync(cancel, in)
}

// OpenDir remembers the names, so that they can be removed while they are read.
func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return s.in(in.NodeId, func(d *node) error {
		s.fs.last++
		out.Fh = s.fs.last
		var list []named
		for _, name := range slices.Sorted(maps.Keys(d.entries)) {
			list = append(list, named{name, d.entries[name]})
		}
		s.fs.folders[out.Fh] = list
		return nil
	})
}

func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.in(in.NodeId, func(*node) error {
		list := s.fs.folders[in.Fh]
		for _, e := range list[min(in.Offset, uint64(len(list))):] {
			if !out.AddDirEntry(fuse.DirEntry{Name: e.name, Ino: e.node.id, Mode: e.node.mode}) {
				break
			}
		}
		return nil
	})
}

func (s *server) ReleaseDir(in *fuse.ReleaseIn) {
	s.fs.mu.Lock()
	defer s.fs.mu.Unlock()
	delete(s.fs.folders, in.Fh)
}

func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.NameLen = 4096, 255
	out.Blocks, out.Bfree, out.Bavail = 1<<20, 1<<20, 1<<20
	return fuse.OK
}
