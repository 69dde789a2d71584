package ckpt

import (
	"os"
	"slices"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// outside answers who beyond the tree holds a pipe, fifo, terminal or piece of shared
// memory. It reads /proc of every other process, so only when somebody asks, and once.
type outside struct {
	tree   []int
	read   bool
	fds    map[inode][]holder
	mapped bool
	maps   map[inode]int
	writes map[inode]int // of maps, those that can write now
}

type inode struct{ dev, ino uint64 }

type holder struct {
	pid         int
	read, write bool
}

func newOutside(tree []int) *outside { return &outside{tree: tree} }

// others lists the processes that are neither in the tree nor this one.
func (o *outside) others() []int {
	pids, err := quickread.Numbers("/proc")
	if err != nil {
		return nil
	}
	self := os.Getpid()
	return slices.DeleteFunc(pids, func(p int) bool { return p == self || slices.Contains(o.tree, p) })
}

// fd is kind.Scene.Outside.
func (o *outside) fd(dev, ino uint64, access int) int {
	if !o.read {
		o.readFDs()
		o.read = true
	}
	ours := 0
	for _, h := range o.fds[inode{dev, ino}] {
		if access == unix.O_RDONLY && h.read || access == unix.O_WRONLY && h.write {
			if !kind.SameProgram(h.pid) {
				return h.pid
			}
			ours = h.pid // it may look at the tree just now, and have duplicates for a moment
		}
	}
	return ours
}

// readFDs looks at every descriptor of the other processes. The mode bits of the link in
// /proc/PID/fd tell how it was opened, and stat on it what it is.
func (o *outside) readFDs() {
	o.fds = map[inode][]holder{}
	for _, pid := range o.others() {
		nums, err := quickread.Numbers(procPath(pid, "fd"))
		if err != nil {
			continue // it vanished, or we may not look: then it shares nothing with a tree that we may trace
		}
		for _, n := range nums {
			if key, h, ok := heldBy(pid, n); ok {
				o.fds[key] = append(o.fds[key], h)
			}
		}
	}
}

// heldBy tells what a descriptor of a process points at, if it is of a sort that two
// processes talk through. AT_STATX_DONT_SYNC keeps the question from travelling to a network
// or FUSE server, which may be this very process.
func heldBy(pid, num int) (inode, holder, bool) {
	path := procPath(pid, "fd/"+strconv.Itoa(num))
	var st unix.Statx_t
	var link unix.Stat_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st)
	if err != nil || unix.Lstat(path, &link) != nil {
		return inode{}, holder{}, false
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFREG, unix.S_IFSOCK:
		return inode{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, holder{pid, link.Mode&0o400 != 0, link.Mode&0o200 != 0}, true
	}
	return inode{}, holder{}, false
}

// memory returns the pid of another process that maps or holds the shared memory with these
// numbers, or 0.
func (o *outside) memory(dev, ino uint64) int {
	o.readMaps()
	if pid := o.maps[inode{dev, ino}]; pid != 0 {
		return pid
	}
	return o.holder(dev, ino)
}

// writer returns the pid of another process that has the shared memory mapped for writing, or 0.
func (o *outside) writer(dev, ino uint64) int {
	o.readMaps()
	return o.writes[inode{dev, ino}]
}

// readMaps looks at the shared memory and the deleted files that other processes map, once.
func (o *outside) readMaps() {
	if o.mapped {
		return
	}
	o.mapped, o.maps, o.writes = true, map[inode]int{}, map[inode]int{}
	for _, pid := range o.others() {
		b, err := quickread.File(procPath(pid, "maps"))
		if err != nil {
			continue // vanished, or a kernel thread
		}
		ms, err := procfs.ParseMaps(b)
		if err != nil {
			continue
		}
		for i := range ms {
			m := &ms[i]
			if !isSegment(m) && !(m.Shared && m.Deleted) {
				continue
			}
			o.maps[inodeOf(m)] = pid
			if m.Shared && m.Write {
				o.writes[inodeOf(m)] = pid
			}
		}
	}
}

// holder returns the pid of another process that has the file with these numbers open, or 0.
func (o *outside) holder(dev, ino uint64) int {
	if pid := o.fd(dev, ino, unix.O_RDONLY); pid != 0 {
		return pid
	}
	return o.fd(dev, ino, unix.O_WRONLY)
}
