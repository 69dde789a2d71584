package kind

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Some files of /proc/PID show the memory that the process had when they were opened. After an
// execve(2) they show nothing any more, and cannot be made again.

// procmapQuery is struct procmap_query of linux/fs.h.
type procmapQuery struct {
	size, flags, addr uint64
	_                 [10]uint64
}

const (
	procmapQueryNr  = 0xc0686611 // PROCMAP_QUERY
	procmapAnyAbove = 0x10       // PROCMAP_QUERY_COVERING_OR_NEXT_VMA
)

// staleMemory refuses a file that shows memory from before an execve(2). It reads where that has
// no effect on the next read: at an offset, and for text that is made piece by piece only at the start,
// when the next read begins there anyway.
func staleMemory(f *Found, r *procFileRec) error {
	if f.Flags&unix.O_PATH != 0 {
		return nil
	}
	const gone = "it shows the memory from before its process called execve, which is gone"
	fresh := r.path(int(r.PID), int(r.TID))
	switch r.Name {
	case "maps", "smaps", "smaps_rollup", "numa_maps", "mem", "environ", "pagemap", "auxv":
	default:
		return nil
	}
	if r.Name == "maps" {
		q := procmapQuery{flags: procmapAnyAbove}
		q.size = uint64(unsafe.Sizeof(q))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.FD), procmapQueryNr, uintptr(unsafe.Pointer(&q)))
		switch errno {
		case 0, unix.ENOENT:
			return nil
		case unix.ESRCH:
			if !empty(fresh) { // a zombie has no memory, and its new file will have none
				return errors.New(gone)
			}
			return nil
		} // ENOTTY before Linux 6.11
	}
	if !readable(f.Flags) {
		return fmt.Errorf("it is open for writing only, so that nobody can tell whose memory it leads to")
	}
	text := r.Name == "maps" || r.Name == "smaps" || r.Name == "smaps_rollup" || r.Name == "numa_maps"
	if text && f.Info.Pos != 0 {
		return fmt.Errorf("it is being read at position %d, and nobody can tell without disturbing that whether it shows memory from before an execve", f.Info.Pos)
	}
	b := make([]byte, 8)
	if r.Name == "auxv" {
		b = make([]byte, 4096)
	}
	n, err := unix.Pread(f.FD, b, 0)
	if n > 0 {
		if r.Name != "auxv" {
			return nil
		}
		now, err := quickread.File(fresh)
		if err != nil {
			return err
		}
		if bytes.Equal(now, b[:n]) { // it has random addresses in it
			return nil
		}
		return errors.New(gone)
	}
	if r.Name == "mem" && err == unix.EIO { // nothing is mapped there, but there is memory
		return nil
	}
	if empty(fresh) {
		return nil
	}
	return errors.New(gone)
}

// empty reports whether a file of /proc that is opened now shows nothing.
func empty(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, make([]byte, 8), 0)
	return n <= 0 && err != unix.EIO
}
