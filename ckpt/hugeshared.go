package ckpt

import (
	"bytes"
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// Shared memory of huge pages lives in files of a hugetlbfs. These know no holes: lseek(2) takes
// all of them for data, and a read of a page that is not there gives zeros.

// hugePiece is how much of such a file is read at a time; a huge page has no less.
const hugePiece = 2 << 20

// hugePageSize is the page size of a file on a hugetlbfs, 0 for other files.
func hugePageSize(f *os.File) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	if fs.Type != unix.HUGETLBFS_MAGIC {
		return 0, nil
	}
	return uint64(fs.Bsize), nil
}

// copyHuge copies what of a file on a hugetlbfs is not zero. allocated is how many bytes of huge
// pages it has, which bounds that.
func copyHuge(f *os.File, size, allocated int64) (*held, error) {
	room, err := newHeld([]image.Extent{{Len: uint64(allocated)}})
	if err != nil {
		return nil, err
	}
	h := &held{data: room.data}
	zeros := make([]byte, hugePiece)
	for off, used := int64(0), int64(0); off < size && used < allocated; off += hugePiece {
		b := h.data[used:min(used+min(hugePiece, size-off), allocated)]
		if _, err := (paddedReader{f}).ReadAt(b, off); err != nil {
			h.free()
			return nil, fmt.Errorf("read %d bytes at %#x: %w", len(b), off, err)
		}
		if bytes.Equal(b, zeros[:len(b)]) {
			continue
		}
		h.extents = joined(h.extents, uint64(off), uint64(off)+uint64(len(b)))
		used += int64(len(b))
	}
	return h, nil
}
