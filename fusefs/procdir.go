package fusefs

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// ckptDir is ckpt/: one directory per process, like /proc.
type ckptDir struct {
	forbidden
	f *filesystem
}

func (d *ckptDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	setAttr(&out.Attr, 0o555, 0, 0, 0, time.Now())
	return 0
}

// Readdir lists the user processes.
func (d *ckptDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	pids, err := listProcesses()
	if err != nil {
		return nil, errno(err)
	}
	names := make([]string, len(pids))
	for i, pid := range pids {
		names[i] = strconv.Itoa(pid)
	}
	return dirEntries(names, syscall.S_IFDIR), 0
}

// Lookup finds a process by its id. Threads have entries in /proc too, but are no processes.
func (d *ckptDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	pid, err := strconv.Atoi(name)
	if err != nil || pid <= 0 || strconv.Itoa(pid) != name {
		return nil, syscall.ENOENT
	}
	p, err := readProcess(pid)
	if err != nil || p.tgid != pid {
		return nil, syscall.ENOENT
	}
	setAttr(&out.Attr, 0o555, 0, p.uid, p.gid, time.Now())
	n := &procDir{f: d.f, id: procID{pid, p.start}}
	return d.NewInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: ino(spaceProc, uint64(pid), 0), Gen: p.start}), 0
}

// procDir is ckpt/PID/.
type procDir struct {
	forbidden
	f  *filesystem
	id procID
}

// The files of procDir; the order is their part of the inode number.
const (
	partImage = iota + 1
	partExplain
	partState
	partInfo
	partPolicy
	partTrack
)

// process reads the process of this directory anew and fails if it is gone.
func (d *procDir) process() (*process, error) {
	p, err := readProcess(d.id.pid)
	if err != nil {
		return nil, err
	}
	if p.start != d.id.start {
		return nil, failf(syscall.ESRCH, "process %d has ended", d.id.pid)
	}
	return p, nil
}

func (d *procDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	p, err := d.process()
	if err != nil {
		return syscall.ENOENT
	}
	setAttr(&out.Attr, 0o555, 0, p.uid, p.gid, time.Now())
	return 0
}

// Readdir leaves image out: a walker that reads every file it finds would stop every process
// of the machine once.
func (d *procDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return dirEntries([]string{"explain", "info", "policy", "state", "track"}, syscall.S_IFREG), 0
}

func (d *procDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p, err := d.process()
	if err != nil {
		return nil, syscall.ENOENT
	}
	attr := fs.StableAttr{Ino: ino(spaceProc, uint64(p.pid), 0), Gen: p.start}
	text := func(part uint64, make func() ([]byte, error)) (*fs.Inode, syscall.Errno) {
		n := &textNode{mode: 0o400, uid: p.uid, gid: p.gid, time: time.Now(), logf: d.f.logf,
			text: func(context.Context) ([]byte, error) { return make() }}
		n.attr(nil, &out.Attr)
		attr.Ino += part
		return d.NewInode(ctx, n, attr), 0
	}
	word := func(part uint64, n *wordNode) (*fs.Inode, syscall.Errno) {
		n.attr(&out.Attr)
		attr.Ino += part
		return d.NewInode(ctx, n, attr), 0
	}
	switch name {
	case "image":
		return d.lookupImage(ctx, p, out)
	case "explain":
		return text(partExplain, d.explain)
	case "info":
		return text(partInfo, d.info)
	case "policy":
		return word(partPolicy, d.f.policyNode(p))
	case "state":
		return word(partState, d.f.stateNode(p))
	case "track":
		return word(partTrack, d.f.trackNode(p))
	}
	return nil, syscall.ENOENT
}

// lookupImage returns the caller's own node for the image.
func (d *procDir) lookupImage(ctx context.Context, p *process, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	_, tgid := caller(ctx)
	n := d.f.image(p, tgid)
	n.attr(&out.Attr)
	return d.NewInode(ctx, n, fs.StableAttr{Ino: ino(spaceProc, uint64(p.pid), partImage), Gen: n.gen}), 0
}

// explain lists findings, one a line, after the sentence of the last failed checkpoint.
func (d *procDir) explain() ([]byte, error) {
	var b strings.Builder
	if e := d.f.recordOf(d.id).Error; e != nil {
		fmt.Fprintf(&b, "the last checkpoint, at %s, failed: %s\n", e.Time.Format(time.RFC3339), e.Error)
	}
	found, err := d.f.engine.Explain(d.id.pid, d.f.policies.of(d.id))
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, f := range found {
		fmt.Fprintln(&b, f)
	}
	return []byte(b.String()), nil
}

// processInfo is ckpt/PID/info.
type processInfo struct {
	PID      int           `json:"pid"`
	Comm     string        `json:"comm"`
	State    string        `json:"state"`
	Estimate int64         `json:"estimate"` // upper bound of an image's size, bytes
	RSS      int64         `json:"rss"`      // of the tree, bytes
	FDs      int           `json:"fds"`      // of the tree
	Tree     []processLine `json:"tree"`
	Track    trackState    `json:"track"`
	record
}

type processLine struct {
	PID  int    `json:"pid"`
	PPID int    `json:"ppid"`
	Comm string `json:"comm"`
	RSS  int64  `json:"rss"` // bytes
	FDs  int    `json:"fds"`
}

func (d *procDir) info() ([]byte, error) {
	p, err := d.process()
	if err != nil {
		return nil, err
	}
	in := processInfo{PID: p.pid, Comm: p.comm, State: d.f.state(d.id), record: d.f.recordOf(d.id), Track: d.f.trackers.state(d.id), Tree: []processLine{}}
	tree, err := d.f.engine.Tree(p.pid)
	if err != nil {
		tree = []int{p.pid} // a kernel thread or init has no tree for us, but is worth a line
	}
	for _, pid := range tree {
		q, err := readProcess(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		l := processLine{q.pid, q.ppid, q.comm, q.rss * int64(os.Getpagesize()), countFDs(pid)}
		in.RSS += l.RSS
		in.FDs += l.FDs
		in.Tree = append(in.Tree, l)
	}
	if in.Estimate, err = d.f.engine.Estimate(p.pid); err != nil {
		in.Estimate = minEstimate
	}
	b, err := json.MarshalIndent(in, "", "  ")
	return append(b, '\n'), err
}

// countFDs returns the number of open descriptors, 0 if they cannot be counted.
func countFDs(pid int) int {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	if st.Size() > 0 {
		return int(st.Size()) // the number of descriptors, since Linux 6.2
	}
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(names)
}

// Rename says what a rename to another filesystem says, so that mv copies.
func (d *procDir) Rename(_ context.Context, name string, _ fs.InodeEmbedder, _ string, _ uint32) syscall.Errno {
	if name == "image" {
		return syscall.EXDEV
	}
	return syscall.EPERM
}

// Unlink is the second half of mv: it kills the tree if that is frozen and the caller has
// read an image of it completely since.
func (d *procDir) Unlink(ctx context.Context, name string) syscall.Errno {
	if name != "image" {
		return syscall.EPERM
	}
	_, tgid := caller(ctx)
	if err := d.f.take(ctx, d.id, tgid); err != nil {
		d.f.logf("pid %d: not killed: %v", d.id.pid, err)
		return errno(err)
	}
	return 0
}
