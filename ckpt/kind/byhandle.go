package kind

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// fileHandle leads to a file that has a name which the kernel does not tell: the one by which it was opened is gone or
// leads elsewhere, and another is somewhere on its filesystem. It is the very file, or none (open_by_handle_at(2)).
type fileHandle struct {
	Dev   uint64 `cbor:"1,keyasint"`
	Type  int32  `cbor:"2,keyasint"`
	Bytes []byte `cbor:"3,keyasint"`
}

// handle returns the handle of a file if it leads to it, or nil: filesystems need not have handles.
func (f *Found) handle() *fileHandle {
	h, _, err := unix.NameToHandleAt(f.FD, "", unix.AT_EMPTY_PATH)
	if err != nil || f.Stat.Nlink == 0 || f.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	got := &fileHandle{Dev: f.Stat.Dev, Type: h.Type(), Bytes: h.Bytes()}
	fd, err := got.open(unix.O_PATH)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Dev != f.Stat.Dev || st.Ino != f.Stat.Ino {
		return nil
	}
	return got
}

// open opens the file, which takes CAP_DAC_READ_SEARCH.
func (h *fileHandle) open(flags int) (int, error) {
	if len(h.Bytes) > 128 { // MAX_HANDLE_SZ
		return -1, fmt.Errorf("a file handle of %d bytes", len(h.Bytes))
	}
	mounts, err := mountsHere()
	if err != nil {
		return -1, err
	}
	err = errors.New("its filesystem is not mounted here")
	for _, m := range mounts {
		if m.Dev != h.Dev {
			continue
		}
		top, oerr := unix.Open(m.Point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if oerr != nil {
			continue // a file is mounted there, or the user may not see it
		}
		fd, herr := unix.OpenByHandleAt(top, unix.NewFileHandle(h.Type, h.Bytes), flags|unix.O_CLOEXEC)
		unix.Close(top) // only to tell which filesystem
		if herr == nil {
			return fd, nil
		}
		if err = herr; err == unix.ESTALE {
			err = fmt.Errorf("the file is gone (%w)", herr)
		}
	}
	return -1, err
}

// openHandle opens the file of a record with its flags, and says what it is now.
func (h *fileHandle) openHandle(path string, flags int) (int, *unix.Stat_t, error) {
	fd, err := h.open(flags)
	if err != nil {
		return -1, nil, fmt.Errorf("open file %s, by whose name it was opened, but which had another name at the checkpoint: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd) // never used
		return -1, nil, fmt.Errorf("open file %s: fstat: %w", path, err)
	}
	return fd, &st, nil
}
