package restore

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// lockedBy names who holds a lock that excludes l on the file that is our descriptor fd, or
// has a file open that is to be leased. "" is nobody. Locks of fd itself do not count. others are
// the locks of all other processes.
func lockedBy(fd int, l *image.Lock, others func() (lockers, error)) (string, error) {
	switch l.Type {
	case image.LockPOSIX, image.LockOFD:
		got := unix.Flock_t{Type: int16(lockMode(l)), Start: l.Start, Len: lockLen(l)}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &got); err != nil {
			return "", fmt.Errorf("F_OFD_GETLK: %w", err)
		}
		switch {
		case got.Type == unix.F_UNLCK:
			return "", nil
		case got.Pid > 0:
			return processName(int(got.Pid)), nil
		case got.Pid < 0 && got.Pid != -1:
			return "a process of another machine", nil
		}
		who, err := findLocker(fd, others, func(h *procfs.Lock) bool {
			return h.Type == "OFDLCK" && h.Start <= l.End && l.Start <= h.End && (l.Write || h.Mode == "WRITE")
		})
		return cmp.Or(who, "another process, which cannot be seen from here,"), err
	case image.LockFlock:
		return findLocker(fd, others, func(h *procfs.Lock) bool { return h.Type == "FLOCK" && (l.Write || h.Mode == "WRITE") })
	}
	return findOpener(fd)
}

// processName is "pid 12 (name)".
func processName(pid int) string {
	if st, err := readStat(pid); err == nil {
		return fmt.Sprintf("pid %d (%s)", pid, st.Comm)
	}
	return fmt.Sprintf("pid %d", pid)
}

// lockers are the locks that processes hold, by inode.
type lockers map[[2]uint64][]locker

type locker struct {
	pid int
	procfs.Lock
}

// findLockers looks through the descriptors of all processes but us and our stubs.
func findLockers() (lockers, error) {
	all := lockers{}
	_, err := findFD(func(pid int, num string) bool {
		for _, h := range heldLocks(pid, num) {
			key := [2]uint64{h.Dev, h.Ino}
			all[key] = append(all[key], locker{pid, h})
		}
		return false
	})
	return all, err
}

// findLocker names who holds a lock of the file behind fd.
func findLocker(fd int, others func() (lockers, error), excludes func(h *procfs.Lock) bool) (string, error) {
	dev, ino, err := lockInode(fd)
	if err != nil {
		return "", err
	}
	all, err := others()
	if err != nil {
		return "", err
	}
	for _, h := range all[[2]uint64{dev, ino}] {
		if excludes(&h.Lock) {
			return processName(h.pid), nil
		}
	}
	return "", nil
}

// findOpener looks for another process that has the file behind fd open.
func findOpener(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("fstat: %w", err)
	}
	return findFD(func(pid int, num string) bool {
		var other unix.Stat_t
		err := unix.Stat(procPath(pid, "fd/"+num), &other)
		return err == nil && other.Dev == st.Dev && other.Ino == st.Ino
	})
}

// findFD names the first process but us and our stubs with a descriptor that match accepts.
func findFD(match func(pid int, num string) bool) (string, error) {
	pids, err := allPIDs()
	if err != nil {
		return "", err
	}
	for _, pid := range pids {
		if pid == os.Getpid() || tracedByUs(pid) {
			continue
		}
		d, err := os.Open(procPath(pid, "fdinfo"))
		if err != nil {
			continue // it has ended, or is none of our business
		}
		nums, _ := d.Readdirnames(-1)
		d.Close()
		for _, num := range nums {
			if match(pid, num) {
				return processName(pid), nil
			}
		}
	}
	return "", nil
}

// tracedByUs reports whether a process is one of those that are being restored.
func tracedByUs(pid int) bool {
	b, err := quickread.File(procPath(pid, "status"))
	if err != nil {
		return false
	}
	st, err := procfs.ParseStatus(b)
	if err != nil || st.TracerPid == 0 {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/self/task/%d", st.TracerPid))
	return err == nil
}

// heldLocks reads the locks that a descriptor of a process holds.
func heldLocks(pid int, num string) []procfs.Lock {
	b, err := quickread.File(procPath(pid, "fdinfo/"+num))
	if err != nil || !strings.Contains(string(b), "\nlock:") {
		return nil
	}
	info, err := procfs.ParseFDInfo(b)
	if err != nil {
		return nil
	}
	var all []procfs.Lock
	for _, line := range info.Locks {
		if l, ok := procfs.ParseLock(line); ok {
			all = append(all, l)
		}
	}
	return all
}

// lockInode returns the numbers by which lines about locks name the file behind fd: the device is
// that of the filesystem, which on some (btrfs) is not what stat(2) tells.
func lockInode(fd int) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, fmt.Errorf("fstat: %w", err)
	}
	b, err := quickread.File("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, 0, err
	}
	info, err := procfs.ParseFDInfo(b)
	if err != nil {
		return 0, 0, err
	}
	text, err := quickread.File("/proc/self/mountinfo")
	if err != nil {
		return 0, 0, err
	}
	mounts, err := procfs.ParseMountInfo(text)
	if err != nil {
		return 0, 0, err
	}
	for _, m := range mounts {
		if m.ID == info.MntID {
			return m.Dev, info.Ino, nil
		}
	}
	return st.Dev, info.Ino, nil // a mount of the kernel's own
}
