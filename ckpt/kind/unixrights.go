package kind

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// apartFS runs f on a thread with a working directory, root and umask of its own, and otherwise the
// filesystem rights of the calling one. It ends with f.
func apartFS(root, dir string, f func() error) error {
	mine, err := threadRights()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- enterFS(root, dir, func() error {
			if err := mine.take(); err != nil {
				return err
			}
			return f()
		})
	}()
	return <-done
}

// fsRights are what decides about the files that a thread may open.
type fsRights struct {
	uid, gid int // filesystem ids
	groups   []uint32
	caps     [2]uint32 // effective
}

// capHeader is of the calling thread.
func capHeader() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

// threadRights are those of the calling thread.
func threadRights() (r fsRights, err error) {
	groups, err := unix.Getgroups()
	if err != nil {
		return r, fmt.Errorf("getgroups: %w", err)
	}
	for _, g := range groups {
		r.groups = append(r.groups, uint32(g))
	}
	var data [2]unix.CapUserData
	if err := unix.Capget(capHeader(), &data[0]); err != nil {
		return r, fmt.Errorf("capget: %w", err)
	}
	r.caps = [2]uint32{data[0].Effective, data[1].Effective}
	none := ^uintptr(0) // no id: it changes nothing
	uid, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, none, 0, 0)
	gid, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, none, 0, 0)
	r.uid, r.gid = int(uid), int(gid)
	return r, nil
}

// take gives them to the calling thread, which has more.
func (r *fsRights) take() error {
	now, err := threadRights()
	if err != nil {
		return err
	}
	if !slices.Equal(now.groups, r.groups) {
		at := unsafe.Pointer(nil)
		if len(r.groups) > 0 {
			at = unsafe.Pointer(&r.groups[0])
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(r.groups)), uintptr(at), 0); errno != 0 {
			return fmt.Errorf("setgroups: %w", errno)
		}
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(r.gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(r.uid), 0, 0)
	var data [2]unix.CapUserData
	if err := unix.Capget(capHeader(), &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i := range data {
		data[i].Effective = data[i].Permitted & r.caps[i]
	}
	if err := unix.Capset(capHeader(), &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if now, err = threadRights(); err == nil && (now.uid != r.uid || now.gid != r.gid) {
		err = fmt.Errorf("setfsuid to %d and %d: %w", r.uid, r.gid, unix.EPERM)
	}
	return err
}

// enterFS runs f on the calling thread with a working directory, root and umask of its own.
func enterFS(root, dir string, f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare of the working directory: %w", err)
	}
	if root != "/" {
		if err := unix.Chroot(root); err != nil {
			return fmt.Errorf("chroot to %s: %w", root, err)
		}
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("chdir to %s: %w", dir, err)
	}
	return f()
}
