package fusefs

import (
	"context"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// wordNode is a file of a process that says something and takes words.
type wordNode struct {
	fs.Inode
	f        *filesystem
	id       procID
	name     string
	uid, gid uint32
	text     func() []byte
	set      func(ctx context.Context, text string) error
}

// wordHandle is an open wordNode. A write acts at once, so that its error is the error of
// write(2): shells do not look at that of close(2).
type wordHandle struct{ n *wordNode }

func (n *wordNode) attr(a *fuse.Attr) {
	setAttr(a, 0o600, int64(len(n.text())), n.uid, n.gid, time.Now())
}

func (n *wordNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// Setattr accepts the truncation that `echo word > file` starts with.
func (n *wordNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return onlyTruncated(in)
}

func (n *wordNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &wordHandle{n}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *wordHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	t := &textHandle{h.n.text()}
	return t.Read(ctx, dest, off)
}

func (h *wordHandle) Write(ctx context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	n := h.n
	ctx, done := n.f.untilCallerLeaves(ctx)
	defer done()
	if err := n.set(ctx, string(data)); err != nil {
		n.f.logf("pid %d: %s: %v", n.id.pid, n.name, err)
		return 0, neverEINTR(errno(err))
	}
	n.f.logf("pid %d: %s %s", n.id.pid, n.name, strings.Join(strings.Fields(string(data)), " "))
	return uint32(len(data)), 0
}
