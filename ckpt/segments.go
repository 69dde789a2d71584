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
	copies []content
	// Files that are gone: those that the tree could write to once it goes on.
	written map[image.ObjRef]bool
}

func newSegments() *segments {
	return &segments{refs: map[inode]image.ObjRef{}, written: map[image.ObjRef]bool{}}
}

// free gives the copies back.
func (s *segments) free() {
	for _, h := range s.copies {
		h.free()
	}
}

// captureSegments copies the shared memory that is mapped but perhaps not open, and the deleted
// files that are mapped or executed.
func (c *Checkpoint) captureSegments(s *survey) error {
	for i, p := range c.procs {
		for k := range p.mem.areas {
			a := &p.mem.areas[k]
			if a.kind == image.VMAFileShared && a.Deleted && len(a.Flags) == 0 { // it may be able to write to a file that is gone
				return fmt.Errorf("pid %d: the mapping of a deleted file at %#x has just been made or changed: %w", p.pid, a.Start, errRaced)
			}
			if a.sysv() && len(a.Flags) == 0 { // it may be attached for reading only
				return fmt.Errorf("pid %d: the SysV shared memory at %#x has just been attached or changed: %w", p.pid, a.Start, errRaced)
			}
			if a.kind != image.VMASegment || a.sysv() {
				continue
			}
			if a.gone != nil && !s.mapsGone(a.gone.st.Dev, a.gone.st.Ino) {
				return fmt.Errorf("pid %d: the file mapped at %#x was deleted just now: %w", p.pid, a.Start, errRaced)
			}
			if _, err := c.segs.ofArea(p.pid, a); err != nil {
				return err
			}
		}
		if err := c.captureExe(s, p, &c.m.MMs[i]); err != nil {
			return err
		}
	}
	if err := c.captureSysV(c.shm); err != nil {
		return err
	}
	if err := c.captureIPC(); err != nil {
		return err
	}
	if !c.snapshots() {
		return nil // the tree writes nothing before all is read
	}
	return c.segs.copyWritten()
}

// captureExe records where the executable is. Task has filled in what it is.
func (c *Checkpoint) captureExe(s *survey, p *proc, mm *image.MM) error {
	var w whereabouts
	if l := p.looked; l != nil && keyOf(&l.exe.st) == (inode{mm.Exe.Dev, mm.Exe.Ino}) && (l.exe.gone || leadsTo(l.exe.path, &l.exe.st)) {
		w = l.exe
	} else { // it has been executed since, or deleted
		var no *notFound
		var err error
		if w, no, err = findExe(p.pid); err != nil {
			return fmt.Errorf("pid %d: %w", p.pid, err)
		}
		if no != nil {
			return image.Refusals([]image.Finding{no.executable(p.pid, &w)})
		}
	}
	mm.Exe.Path, mm.ExeWas = w.path, w.was
	if !w.gone {
		return nil
	}
	if !s.mapsGone(w.st.Dev, w.st.Ino) {
		return fmt.Errorf("pid %d: its executable %s was deleted just now: %w", p.pid, w.path, errRaced)
	}
	var err error
	mm.ExeSegment, err = c.segs.ofGone(procPath(p.pid, "exe"), &w)
	return err
}

// ofArea returns the segment that a mapping shows.
func (s *segments) ofArea(pid int, a *area) (image.ObjRef, error) {
	if a.gone != nil {
		ref, err := s.ofGone(mapFile(pid, &a.Mapping), a.gone)
		if err == nil && a.mayWrite() {
			s.written[ref] = true
		}
		return ref, err
	}
	if ref := s.refs[inode{a.Dev, a.Ino}]; ref != 0 {
		return ref, nil
	}
	f, err := os.Open(mapFile(pid, &a.Mapping))
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

// add copies the content of a segment. path is "/memfd:NAME", or "/dev/zero" or "/anon_hugepage"
// for MAP_SHARED|MAP_ANONYMOUS.
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
	h, err := copySegment(f, &st, &seg)
	if err != nil {
		return 0, fmt.Errorf("shared memory %s: %w", path, err)
	}
	s.copies = append(s.copies, h)
	seg.Extents = h.extents
	s.list = append(s.list, seg)
	s.refs[key] = image.ObjRef(len(s.list))
	return s.refs[key], nil
}

// copySegment copies the content of a segment and finds out whether it has huge pages.
func copySegment(f *os.File, st *unix.Stat_t, seg *image.Segment) (*held, error) {
	huge, err := hugePageSize(f)
	if err != nil {
		return nil, err
	}
	if huge != 0 {
		seg.Huge = hugeShift(huge)
		return copyHuge(f, st.Size, st.Blocks*512)
	}
	es, err := dataExtents(f, st.Size)
	if err != nil {
		return nil, err
	}
	h, err := newHeld(es)
	if err != nil {
		return nil, err
	}
	var from pageReader = paddedReader{f}
	if seg.SysV != nil && len(es) > 0 {
		w, err := mapWhole(f, st.Size)
		if err != nil {
			h.free()
			return nil, err
		}
		defer w.close()
		from = w
	}
	if err := h.fill(from); err != nil {
		h.free()
		return nil, err
	}
	return h, nil
}

// dataExtents finds what of a file is not a hole, in whole pages.
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
		to = min(to, size)
		if to <= from {
			return out, nil // it was cut meanwhile
		}
		at = to
		from, to = from/page*page, (to+page-1)/page*page
		out = joined(out, uint64(from), uint64(to))
	}
	return out, nil
}

// joined adds the pages from start to end, of which the last extent may hold some already, as a
// file's blocks can be smaller than a page.
func joined(all []image.Extent, start, end uint64) []image.Extent {
	if n := len(all); n > 0 && start <= all[n-1].Start+all[n-1].Len {
		all[n-1].Len = max(all[n-1].Len, end-all[n-1].Start)
		return all
	}
	return append(all, image.Extent{Start: start, Len: end - start})
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
