package fusefs

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// wordNode is a file that says something and takes words.
type wordNode struct {
	fs.Inode
	f        *filesystem
	name     string // for the log: "pid 7: policy"
	uid, gid uint32
	text     func() ([]byte, syscall.Errno)
	set      func(ctx context.Context, text string) error
}

// wordNode makes such a file of a process.
func (f *filesystem) wordNode(p *process, name string, text func() string, set func(ctx context.Context, text string) error) *wordNode {
	return &wordNode{f: f, name: fmt.Sprintf("pid %d: %s", p.pid, name), uid: p.uid, gid: p.gid, set: set,
		text: func() ([]byte, syscall.Errno) { return []byte(text()), 0 }}
}

// wordHandle is an open wordNode. A write acts at once, so that its error is the error of
// write(2): shells do not look at that of close(2).
type wordHandle struct{ n *wordNode }

func (n *wordNode) attr(a *fuse.Attr) syscall.Errno {
	b, e := n.text()
	setAttr(a, 0o600, int64(len(b)), n.uid, n.gid, time.Now())
	return e
}

func (n *wordNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.attr(&out.Attr)
}

// Setattr accepts the truncation that `echo word > file` starts with.
func (n *wordNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.attr(&out.Attr); e != 0 {
		return e
	}
	return onlyTruncated(in)
}

func (n *wordNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &wordHandle{n}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *wordHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	b, e := h.n.text()
	if e != 0 {
		return nil, e
	}
	return (&textHandle{b}).Read(ctx, dest, off)
}

func (h *wordHandle) Write(ctx context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	n := h.n
	ctx, done := n.f.untilCallerLeaves(ctx)
	defer done()
	if err := n.set(ctx, string(data)); err != nil {
		n.f.logf("%s: %v", n.name, err)
		return 0, neverEINTR(errno(err))
	}
	n.f.logf("%s %s", n.name, strings.Join(strings.Fields(string(data)), " "))
	return uint32(len(data)), 0
}
