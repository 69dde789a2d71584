package ptrace

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// userModeOnly is UFFD_USER_MODE_ONLY of linux/userfaultfd.h: with it everybody may have one.
const userModeOnly = 1

// UserFault makes a userfaultfd(2) for the memory of the entered process and returns our
// descriptor of it, which is for us to close. The process itself never has one: the call is made by
// a helper that shares its memory but not its files, and ends.
func (r *Remote) UserFault(deadline time.Time) (fd int, err error) {
	if r.th == nil || r.stub {
		return -1, fmt.Errorf("pid %d: userfaultfd: no thread is entered", r.pid)
	}
	options := r.th.options
	if err := r.th.SetOptions(options | unix.PTRACE_O_TRACECLONE); err != nil {
		return -1, err
	}
	h, nspid, err := r.cloneHelper(intermediateFlags, deadline)
	if e := r.th.SetOptions(options); err == nil {
		err = e
	}
	fd = -1
	if err == nil {
		fd, err = r.userFaultIn(h, deadline)
	}
	if h != nil {
		err = errors.Join(err, h.killAndWait(time.Now().Add(r.Timeout)), r.reap(nspid))
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("pid %d: a userfaultfd for its memory: %w", r.pid, err)
	}
	return fd, nil
}

// userFaultIn makes it in the helper, whose table of files is empty by then, and fetches it.
func (r *Remote) userFaultIn(h *Thread, deadline time.Time) (int, error) {
	if err := r.dropFiles(h, deadline); err != nil {
		return -1, err
	}
	num, err := r.helperCall(h, deadline, unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly)
	if err != nil {
		return -1, err
	}
	pidfd, err := unix.PidfdOpen(h.TID, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open of the helper: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(num), 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd from the helper: %w", err)
	}
	return fd, nil
}
