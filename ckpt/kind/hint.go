package kind

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// writeHint returns the write life time hint of an inode, F_GET_RW_HINT of fcntl(2), or 0 if it
// has none. It lives in the kernel's memory only, so that a restore must set it again.
func writeHint(fd int) uint64 {
	var h uint64
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GET_RW_HINT, uintptr(unsafe.Pointer(&h)))
	if errno != 0 {
		return 0 // not a file that can have one
	}
	return h
}

// setWriteHint sets the hint of fd if it is another one now. It is advice to the disk, so
// a failure goes to the log only.
func setWriteHint(fd int, h uint64, path string, e *Env) {
	if h == 0 || writeHint(fd) == h {
		return
	}
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SET_RW_HINT, uintptr(unsafe.Pointer(&h)))
	if errno != 0 {
		e.Warn("open file %s: its write life time hint %d cannot be set: %v", path, h, errno)
	}
}
