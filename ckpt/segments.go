package ckpt

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// segments collects the shared memory of a tree, each piece once, with a copy of its
// content. Nothing snapshots shared memory, so all of this happens in the freeze.
type segments struct {
	refs   map[inode]image.ObjRef
	list   []image.Segment
	copies []*held
}

func newSegments() *segments { return &segments{refs: map[inode]image.ObjRef{}} }

// free gives the copies back.
func (s *segments) free() {
	for _, h := range s.copies {
		h.free()
	}
}

// ofArea returns the segment that a mapping shows.
func (s *segments) ofArea(pid int, a *area) (image.ObjRef, error) {
	if ref := s.refs[inode{a.Dev, a.Ino}]; ref != 0 {
		return ref, nil
	}
	path := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, a.Start, a.End)
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("pid %d: shared memory at %#x: %w; it needs root in the initial user namespace", pid, a.Start, err)
	}
	defer f.Close()
	return s.add(f, inode{a.Dev, a.Ino}, a.Path)
}

// ofFile is kind.Scene.Segment.
func (s *segments) ofFile(f *kind.Found) (image.ObjRef, error) {
	key := inode{f.Stat.Dev, f.Stat.Ino}
	if ref := s.refs[key]; ref != 0 {
		return ref, nil
	}
	// A description of our own, so that seeking for data does not move the target's offset.
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.FD))
	if err != nil {
		return 0, fmt.Errorf("pid %d fd %d: open the memfd: %w", f.Slots[0].PID, f.Slots[0].Num, err)
	}
	defer own.Close()
	return s.add(own, key, strings.TrimSuffix(f.Link, " (deleted)"))
}

// add copies the content of a segment. path is "/memfd:NAME", or "/dev/zero" for
// MAP_SHARED|MAP_ANONYMOUS.
func (s *segments) add(f *os.File, key inode, path string) (image.ObjRef, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("shared memory %s: fstat: %w", path, err)
	}
	seg := image.Segment{Size: st.Size, Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	if name, ok := strings.CutPrefix(path, "/memfd:"); ok {
		seg.Memfd, seg.Name = true, name
		seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
		if err != nil {
			return 0, fmt.Errorf("shared memory %s: F_GET_SEALS: %w", path, err)
		}
		seg.Seals = uint32(seals)
	}
	es, err := dataExtents(f, st.Size)
	if err != nil {
		return 0, fmt.Errorf("shared memory %s: %w", path, err)
	}
	h, err := newHeld(es)
	if err != nil {
		return 0, err
	}
	s.copies = append(s.copies, h)
	if err := h.fill(paddedReader{f}); err != nil {
		return 0, fmt.Errorf("shared memory %s: %w", path, err)
	}
	seg.Extents = es
	s.list = append(s.list, seg)
	s.refs[key] = image.ObjRef(len(s.list))
	return s.refs[key], nil
}

// dataExtents finds what of a tmpfs file is not a hole, in whole pages.
func dataExtents(f *os.File, size int64) ([]image.Extent, error) {
	var out []image.Extent
	page := int64(os.Getpagesize())
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("SEEK_DATA: %w", err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("SEEK_HOLE: %w", err)
		}
		from, to = from/page*page, (to+page-1)/page*page
		out = append(out, image.Extent{Start: uint64(from), Len: uint64(to - from)})
		at = to
	}
	return out, nil
}

// paddedReader reads zeros where the file's last page ends early.
type paddedReader struct{ f *os.File }

func (r paddedReader) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		got, err := unix.Pread(int(r.f.Fd()), p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		if got == 0 {
			clear(p[n:])
			break
		}
		n += got
	}
	return len(p), nil
}
