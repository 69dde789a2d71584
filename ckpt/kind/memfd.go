package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// memFD is an open file description of a memfd_create(2) file. The memory, its name, size,
// mode and seals are the segment's; here is only how it is open.
//
// The description that memfd_create(2) returned is writable and yet no writer of the inode: while
// it is the only one, the file can be executed and leased. One that was opened by way of
// /proc/PID/fd is a writer.
type memFD struct{}

// memFDRec is the record of a memfd.
type memFDRec struct {
	Creator bool `cbor:"1,keyasint,omitempty"` // the description of memfd_create(2) itself
}

func (memFD) Name() string { return "memfd" }

func (memFD) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFREG || f.Flags&unix.O_PATH != 0 || f.Stat.Nlink != 0 ||
		!strings.HasPrefix(f.Link, "/memfd:") {
		return false
	}
	// A file of that name may lie in the root directory: it is on another filesystem.
	dev, err := shmDev()
	return err == nil && dev == f.Stat.Dev || fsType(f) == unix.HUGETLBFS_MAGIC
}

func (memFD) Check(f *Found, s *Scene) []image.Finding {
	return held(f, s)
}

func (memFD) Dump(f *Found, s *Scene, rec *image.File) error {
	ref, err := s.Segment(f)
	if err != nil {
		return fmt.Errorf("memory of %s: %w", f.Link, err)
	}
	rec.Segment = ref
	if !writable(f.Flags) {
		return nil
	}
	busy, err := hasWriter(f)
	if err != nil {
		return fmt.Errorf("writers of %s: %w", f.Link, err)
	}
	return encodeRec(rec, &memFDRec{Creator: !busy})
}

// hasWriter reports whether any description of the memfd counts as one for writing: then no
// lease for reading can be had (fcntl(2), F_SETLEASE). If one can it is given back at once.
func hasWriter(f *Found) (bool, error) {
	fd, err := reopen(f.FD, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd) // never read from
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	switch err {
	case nil:
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return false, err
	case unix.EACCES: // another user's, and no CAP_LEASE: the usual
		return false, nil
	}
	return true, nil
}

func (memFD) Open(rec *image.File, e *Env) (int, error) {
	seg, err := e.Segment(rec.Segment)
	if err != nil {
		return -1, fmt.Errorf("memory of %s: %w", rec.Path, err)
	}
	var r memFDRec
	if len(rec.Rec) > 0 { // not for one that only reads, nor in old images
		if err := decodeRec(rec, &r); err != nil {
			return -1, err
		}
	}
	var fd int
	if r.Creator {
		fd, err = dup(seg)
	} else {
		fd, err = reopen(seg, openFlags(rec.Flags))
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, 0, rec.Pos)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", rec.Path, err)
	}
	return fd, nil
}

// shmDev is the device number of the kernel's own tmpfs mount, where memfds live.
func shmDev() (uint64, error) {
	fd, err := unix.MemfdCreate("ckptfs", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd) // empty
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat of a memfd: %w", err)
	}
	return st.Dev, nil
}
