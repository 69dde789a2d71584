package ckpt

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// A device, or a filesystem of its own, may write into memory of a process that it has pinned before, past all page
// tables: with O_DIRECT, mostly. Such a write is not seen if the page was protected again while it was under way. In the freeze no
// such read is under way, but before it one may be. It has a descriptor open then, so whoever
// protects pages of a running process looks for such descriptors afterwards; and if there is none, whatever was under way has
// landed by then.

// copying are the filesystems (statfs(2), linux/magic.h) that read into memory by copying, unless O_DIRECT is set, so that
// the page tables see it.
var copying = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.F2FS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: true, unix.SQUASHFS_MAGIC: true,
	unix.EROFS_SUPER_MAGIC_V1: true, unix.ISOFS_SUPER_MAGIC: true, unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true, unix.HUGETLBFS_MAGIC: true,
	unix.SOCKFS_MAGIC: true, unix.PIPEFS_MAGIC: true, unix.ANON_INODE_FS_MAGIC: true, unix.NSFS_MAGIC: true, unix.PID_FS_MAGIC: true,
	mqueueMagic: true,
}

const mqueueMagic = 0x19800202 // MQUEUE_MAGIC of ipc/mqueue.c

// mayPin reports whether a process has a file open from which memory may be filled past its page tables. What cannot be
// told counts as one. ids are the process, and those of its threads that have a descriptor table of their own.
func mayPin(ids []int) bool {
	for _, id := range ids {
		nums, err := quickread.Numbers(procPath(id, "fd"))
		if err != nil {
			return true
		}
		for _, n := range nums {
			if pins(id, n) {
				return true
			}
		}
	}
	return false
}

func pins(pid, fd int) bool {
	path := procPath(pid, fmt.Sprintf("fd/%d", fd))
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(path, &fs); err != nil {
		return !gone(err)
	}
	if err := unix.Stat(path, &st); err != nil {
		return !gone(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
		return false
	case unix.S_IFBLK:
		return true
	case unix.S_IFCHR:
		return !plainDevice(unix.Major(st.Rdev))
	}
	if !copying[fs.Type] {
		return true
	}
	info, err := quickread.File(procPath(pid, fmt.Sprintf("fdinfo/%d", fd)))
	if err != nil {
		return !gone(err)
	}
	return flagsOf(info)&unix.O_DIRECT != 0
}

// plainDevice reports whether the driver of a character device (Documentation/admin-guide/devices.txt) copies: memory devices,
// terminals and pseudoterminals.
func plainDevice(major uint32) bool {
	return major == 1 || major >= 2 && major <= 5 || major >= 128 && major <= 143
}

// flagsOf returns the flags of /proc/PID/fdinfo/FD; all of them if they are not there.
func flagsOf(info []byte) int {
	_, rest, ok := bytes.Cut(info, []byte("flags:"))
	if !ok {
		return -1
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	v, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 8, 32)
	if err != nil {
		return -1
	}
	return int(v)
}
