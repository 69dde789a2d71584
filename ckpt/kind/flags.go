package kind

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// largeFile is the kernel's O_LARGEFILE; package unix has it as 0 on 64-bit machines, where
	// open(2) adds it always. Files that other system calls make do not have it, such as
	// those of pipe2(2) and TIOCGPTPEER. It means nothing once the file is open.
	largeFile = 0x8000
	// meaningless are flags that F_GETFL may show but that say nothing about an open file. TIOCGPTPEER
	// leaves O_CLOEXEC there, which belongs to descriptors.
	meaningless = largeFile | unix.O_CLOEXEC
	// tmpFile is __O_TMPFILE, what O_TMPFILE is beside O_DIRECTORY.
	tmpFile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	// settable are the status flags that F_SETFL changes; the others are fixed at open.
	settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME | unix.O_ASYNC
	// lookupOnly are flags that only steer the lookup of the path. A file opened anew through
	// /proc/self/fd cannot have them, and they mean nothing afterwards.
	lookupOnly = unix.O_NOFOLLOW | unix.O_DIRECTORY | tmpFile
)

// readable tells whether the status flags allow read(2).
func readable(flags uint32) bool {
	acc := flags & unix.O_ACCMODE
	return flags&unix.O_PATH == 0 && (acc == unix.O_RDONLY || acc == unix.O_RDWR)
}

// writable tells whether the status flags allow write(2).
func writable(flags uint32) bool {
	acc := flags & unix.O_ACCMODE
	return flags&unix.O_PATH == 0 && (acc == unix.O_WRONLY || acc == unix.O_RDWR)
}

// openFlags turns recorded status flags into flags for open(2) that cannot create,
// truncate, block or take a controlling terminal; setFlags makes them right afterwards.
func openFlags(flags uint32) int {
	if flags&unix.O_PATH != 0 {
		return int(flags&(unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY)) | unix.O_CLOEXEC
	}
	never := uint32(unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_ASYNC | tmpFile)
	return int(flags&^never) | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
}

// setFlags gives the open file behind fd the status flags want (F_GETFL) and fails if one
// cannot be had, except those in ignore and the meaningless ones.
func setFlags(fd int, want, ignore uint32) error {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	if (uint32(have)^want)&settable != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, have&^settable|int(want&settable)); err != nil {
			return fmt.Errorf("F_SETFL %#o: %w", want, err)
		}
		if have, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
			return fmt.Errorf("F_GETFL: %w", err)
		}
	}
	if diff := (uint32(have) ^ want) &^ (ignore | meaningless); diff != 0 {
		return fmt.Errorf("status flags came out as %#o, not %#o", have, want)
	}
	return nil
}

// setPos moves the offset of fd to pos, if it is not there already.
func setPos(fd int, pos int64) error {
	if pos == 0 {
		return nil // where every newly opened file is; not every file can seek
	}
	got, err := unix.Seek(fd, pos, unix.SEEK_SET)
	if err != nil {
		return fmt.Errorf("seek to %d: %w", pos, err)
	}
	if got != pos {
		return fmt.Errorf("seek to %d went to %d", pos, got)
	}
	return nil
}

// reopen makes a new open file description of what fd is, as the caller may open it.
func reopen(fd int, flags int) (int, error) {
	n, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags&^(lookupOnly)|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("opening descriptor %d anew through /proc/self/fd: %w", fd, err)
	}
	return n, nil
}

// dup returns another descriptor of the same open file description, with close-on-exec.
func dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("F_DUPFD_CLOEXEC: %w", err)
	}
	return n, nil
}

// What the kernel lets nobody read is not kept: posix_fadvise(2) and readahead, which only
// steer caching. F_NOTIFY of a directory is refused, see held.go.

// finished returns fd once its status flags and position are as recorded, or closes it.
func finished(fd int, flags, ignore uint32, pos int64) (int, error) {
	err := setPos(fd, pos)
	if err == nil {
		err = setFlags(fd, flags, ignore)
	}
	if err != nil {
		unix.Close(fd) // never used; its own error says nothing more
		return -1, err
	}
	return fd, nil
}
