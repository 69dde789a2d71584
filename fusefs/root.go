package fusefs

import (
	"context"
	_ "embed"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// readme is MOUNT/README.
//
//go:embed readme.txt
var readme []byte

// rootDir is the root of the mount.
type rootDir struct {
	forbidden
	f *filesystem
}

// OnAdd builds the top of the tree, which stays.
func (d *rootDir) OnAdd(ctx context.Context) {
	add := func(name string, mode uint32, part uint8, n fs.InodeEmbedder) {
		attr := fs.StableAttr{Mode: mode, Ino: ino(spaceFixed, 0, part)}
		d.AddChild(name, d.NewPersistentInode(ctx, n, attr), true)
	}
	add("README", syscall.S_IFREG, 1, &textNode{mode: 0o444, time: time.Now(), logf: d.f.logf,
		size: func() int64 { return int64(len(readme)) },
		text: func(context.Context) ([]byte, error) { return readme, nil }})
	add("ckpt", syscall.S_IFDIR, 2, &ckptDir{f: d.f})
	add("images", syscall.S_IFDIR, 3, &imagesDir{f: d.f})
	add("restore", syscall.S_IFDIR, 4, &restoreDir{f: d.f, s: &d.f.uploads})
}

func (d *rootDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	setAttr(&out.Attr, 0o555, 0, 0, 0, time.Now())
	return 0
}

// Getxattr answers ServerPID.
func (d *rootDir) Getxattr(_ context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if attr != pidAttr {
		return 0, syscall.ENODATA
	}
	pid := strconv.Itoa(os.Getpid())
	if len(dest) < len(pid) {
		return uint32(len(pid)), syscall.ERANGE
	}
	return uint32(copy(dest, pid)), 0
}

// Statfs shows the room of the filesystem that the store is on.
func (d *rootDir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	var st unix.Statfs_t
	if err := unix.Statfs(d.f.spool, &st); err != nil {
		return errno(err)
	}
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Bfree, st.Bavail
	out.Files, out.Ffree = st.Files, st.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(st.Bsize), uint32(st.Frsize), 255
	return 0
}
