package fusefs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// textNode is a small file that can only be read. Like in /proc its text is made at open; a
// stat before that says 0 unless the size is cheap to know.
type textNode struct {
	fs.Inode
	mode     uint32
	uid, gid uint32
	time     time.Time
	size     func() int64 // nil: unknown before open
	text     func(ctx context.Context) ([]byte, error)
	logf     func(format string, args ...any)
}

// textHandle is an open textNode.
type textHandle struct{ text []byte }

// attr fills in attributes; h may be nil.
func (n *textNode) attr(h fs.FileHandle, a *fuse.Attr) {
	var size int64
	if t, ok := h.(*textHandle); ok {
		size = int64(len(t.text))
	} else if n.size != nil {
		size = n.size()
	}
	setAttr(a, n.mode, size, n.uid, n.gid, n.time)
}

func (n *textNode) Getattr(_ context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(h, &out.Attr)
	return 0
}

func (n *textNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	b, err := n.text(ctx)
	if err != nil {
		n.logf("%s: %v", n.Path(nil), err)
		return nil, 0, errno(err)
	}
	return &textHandle{b}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *textHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h.text)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(h.text[off:min(off+int64(len(dest)), int64(len(h.text)))]), 0
}
