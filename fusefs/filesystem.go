package fusefs

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// blockSize is st_blksize: cat and cp use buffers of that size, so fewer requests.
const blockSize = 1 << 20

// filesystem is what all nodes of one mount share.
type filesystem struct {
	engine  Engine
	store   *store.Store
	spool   string // folder for uploads and NAME.out files
	private bool   // uploads stay in memory
	logf    func(format string, args ...any)
	timeout time.Duration // for one restore
	ctx     context.Context
	stop    context.CancelCauseFunc

	collector *collector
	settler   *settler

	taking      chan struct{}  // holds a token while a checkpoint is taken
	streams     sync.WaitGroup // checkpoints that are being stored, the collector and the settler
	gen         atomic.Uint64  // generation of the last image inode
	saved       savedNames
	uploads     uploads
	lazyUploads uploads
	lastUpload  atomic.Uint64 // number of the last upload
	mu          sync.Mutex
	records     map[procID]*record // what happened to a process by this mount
	imageOf     map[reader]*imageNode
	frozenBy    map[procID]*frozenTree
	policies    policies
	trackers    trackers

	templates templates
}

// procID is a process; the start time tells it from a later one with the same number.
type procID struct {
	pid   int
	start uint64
}

// record is what the mount remembers of a process.
type record struct {
	Last  *lastCheckpoint `json:"last_checkpoint"`
	Error *lastError      `json:"last_error"`
}

type lastCheckpoint struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"`
	Size int64     `json:"size"`
}

type lastError struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error"`
}

// remember changes the record of the process that is pid now. Records of processes that are
// gone are dropped then.
func (f *filesystem) remember(pid int, change func(*record)) {
	p, err := readProcess(pid)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := procID{pid, p.start}
	r := f.records[id]
	if r == nil {
		f.dropRecords()
		r = &record{}
		f.records[id] = r
	}
	change(r)
}

// dropRecords forgets processes that no longer exist.
func (f *filesystem) dropRecords() {
	for id := range f.records {
		if p, err := readProcess(id.pid); err != nil || p.start != id.start {
			delete(f.records, id)
		}
	}
}

// recordOf returns a copy of what is known of a process.
func (f *filesystem) recordOf(id procID) record {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[id]; r != nil {
		return *r
	}
	return record{}
}

// failed logs why a checkpoint of pid failed and keeps the sentence where the user finds it:
// the reader itself only sees an errno.
func (f *filesystem) failed(pid int, err error) {
	f.logf("pid %d: checkpoint failed: %v", pid, err)
	f.remember(pid, func(r *record) { r.Error = &lastError{time.Now().UTC(), err.Error()} })
}

// Spaces of inode numbers. A number is space<<56 | id<<8 | part.
const (
	spaceFixed = iota + 1
	spaceProc
	spaceSaved
	spaceUpload
)

func ino(space uint8, id uint64, part uint8) uint64 {
	return uint64(space)<<56 | id<<8&(1<<56-1) | uint64(part)
}

// setAttr fills in the attributes of a file or directory. Size and blocks agree, or cp would
// take the file for sparse.
func setAttr(a *fuse.Attr, mode uint32, size int64, uid, gid uint32, t time.Time) {
	a.Mode = mode
	a.Size = uint64(size)
	a.Blksize = blockSize
	a.Blocks = (a.Size + 511) / 512
	a.Nlink = 1
	a.Uid, a.Gid = uid, gid
	a.SetTimes(&t, &t, &t)
}

// caller returns the process id (not the thread) of who makes a request, or 0 if it lives
// outside our pid namespace.
func caller(ctx context.Context) (tid, tgid int) {
	c, ok := fuse.FromContext(ctx)
	if !ok || c.Pid == 0 {
		return 0, 0
	}
	p, err := readProcess(int(c.Pid))
	if err != nil {
		return int(c.Pid), int(c.Pid)
	}
	return int(c.Pid), p.tgid
}

// forbidden are the operations that would otherwise succeed without doing anything, since
// that is what the library does where a directory says nothing.
type forbidden struct{ fs.Inode }

func (*forbidden) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }
func (*forbidden) Rmdir(context.Context, string) syscall.Errno  { return syscall.EPERM }
func (*forbidden) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// dirEntries makes a directory listing.
func dirEntries(names []string, mode uint32) fs.DirStream {
	l := make([]fuse.DirEntry, len(names))
	for i, n := range names {
		l[i] = fuse.DirEntry{Name: strings.ToValidUTF8(n, "?"), Mode: mode}
	}
	return fs.NewListDirStream(l)
}

// tempFile makes a file for an upload that is gone when it is closed. With an encrypted store
// it is in memory: the disk is to hold no memory of processes that can be read.
func (f *filesystem) tempFile() (*os.File, error) {
	if !f.private {
		return image.TempFile(f.spool)
	}
	fd, err := unix.MemfdCreate("ckptfs upload", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}
