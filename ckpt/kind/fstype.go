package kind

import (
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Filesystem magics that package unix lacks.
const (
	mqueueMagic = 0x19800202
	configMagic = 0x62656570
)

// fsType is f_type of the filesystem that f is on, or 0.
func fsType(f *Found) int64 {
	if f.Twin != nil {
		return fsType(f.Twin)
	}
	if f.fs == nil {
		var st unix.Statfs_t
		if err := unix.Fstatfs(f.FD, &st); err != nil {
			st.Type = 0 // then no rule for a special filesystem applies, and the path decides
		}
		f.fs = &st.Type
	}
	return *f.fs
}

// pseudo tells whether files of this filesystem are made up by the kernel when they are
// read: their size, times and inode say nothing.
func pseudo(fs int64) bool {
	switch fs {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
		return true
	}
	return false
}

// specialRefusal returns why a file on a filesystem of a special sort cannot be opened by its
// path again, and the remedy, or "" if it can.
func specialRefusal(f *Found) (what, remedy string) {
	const closeIt = "close it before the checkpoint"
	switch fs := fsType(f); fs {
	case unix.PROC_SUPER_MAGIC:
		return procRefusal(f.Link)
	case unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC:
		return "files of debugfs and tracefs have state in the kernel that cannot be read", closeIt
	case unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC:
		return "files of a security module have state in the kernel that cannot be read", closeIt
	case unix.BPF_FS_MAGIC, configMagic:
		return "files of bpffs and configfs have state in the kernel that cannot be read", closeIt
	case mqueueMagic:
		return "it lists message queues, which come and go", closeIt
	case unix.NSFS_MAGIC, unix.PID_FS_MAGIC:
		return "it stands for a namespace or a process, which will be another one at the restore", closeIt
	case unix.FUSE_SUPER_MAGIC:
		if ownMount(f.Info.MntID) {
			return "it lies in a ckptfs mount, which would have to wait for itself", "copy the file out of the mount and use the copy"
		}
	}
	return "", ""
}

// procRefusal judges a path of procfs. What describes the whole machine can be opened again; files
// of processes on /proc are a kind of their own, those of other places cannot.
func procRefusal(link string) (what, remedy string) {
	parts := strings.Split(strings.TrimPrefix(link, "/"), "/")
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 31); err == nil {
			return "it describes process " + p + ", but not on /proc itself",
				"close it before the checkpoint, and open it for each reading"
		}
	}
	switch parts[len(parts)-1] {
	case "kmsg", "kcore", "vmcore":
		return "reading it shows or takes away what the kernel holds at that moment", "close it before the checkpoint"
	}
	return "", ""
}

// ownMount tells whether the mount with this id, of our own mount namespace, is one of ckptfs.
// It asks mountinfo, because a question to the filesystem itself would come back to us.
func ownMount(id int) bool {
	b, err := quickread.File("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	return isOwn(b, id)
}

func isOwn(mountinfo []byte, id int) bool {
	mounts, err := procfs.ParseMountInfo(mountinfo)
	if err != nil {
		return false // then the file is handled as on any other FUSE filesystem
	}
	for _, m := range mounts {
		if m.ID == id {
			return m.FSType == "fuse.ckptfs"
		}
	}
	return false
}
