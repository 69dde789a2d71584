package restore

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// makeSegments makes the shared memory of the image and fills it.
func (j *job) makeSegments() error {
	for i := range j.m.Segments {
		ref := image.ObjRef(i + 1)
		seg := &j.m.Segments[i]
		if seg.SysV != nil { // a process of the tree makes it
			j.segs = append(j.segs, -1)
			continue
		}
		fd, err := j.makeSegment(ref)
		if err != nil {
			return fmt.Errorf("shared memory %d (%q, %d bytes): %w", ref, seg.Name+seg.Path, seg.Size, err)
		}
		j.segs = append(j.segs, fd)
		if err := j.fillSegment(ref, fd); err != nil {
			return fmt.Errorf("shared memory %d (%q, %d bytes): %w", ref, seg.Name+seg.Path, seg.Size, err)
		}
	}
	return j.reopenSegments()
}

// reopenSegments opens for reading what is mapped without the right to write: a memfd cannot
// be sealed against writing while a mapping of it may be made writable.
func (j *job) reopenSegments() error {
	for i := range j.m.MMs {
		for k := range j.m.MMs[i].VMAs {
			v := &j.m.MMs[i].VMAs[k]
			if _, ok := j.readable[v.Segment]; ok || v.Kind != image.VMASegment || writes(v) || j.sysvOf(v) != nil {
				continue
			}
			fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", j.segs[v.Segment-1]), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("shared memory %d: open it for reading: %w", v.Segment, err)
			}
			j.readable[v.Segment] = fd
		}
	}
	return nil
}

// makeSegment returns a descriptor of new shared memory: a deleted file, a memfd, or what
// mmap(MAP_SHARED|MAP_ANONYMOUS) makes, which can be opened through /proc/self/map_files.
func (j *job) makeSegment(ref image.ObjRef) (int, error) {
	seg := &j.m.Segments[ref-1]
	switch {
	case seg.Path != "":
		return j.makeGone(ref)
	case !seg.Memfd:
		return anonSegment(seg)
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING | mfdExec
	if seg.Huge != 0 {
		flags |= unix.MFD_HUGETLB | int(seg.Huge)<<unix.MAP_HUGE_SHIFT
	}
	fd, err := unix.MemfdCreate(seg.Name, flags)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	err = unix.Ftruncate(fd, seg.Size)
	if err == nil {
		err = unix.Fchown(fd, int(seg.UID), int(seg.GID))
	}
	if err == nil {
		err = unix.Fchmod(fd, seg.Mode&0o7777)
	}
	if err != nil {
		closeFD(fd)
		return -1, fmt.Errorf("size, owner and mode of the memfd: %w", err)
	}
	return fd, nil
}

// anonSegment makes memory as MAP_SHARED|MAP_ANONYMOUS does. It is not charged before it is
// written to, as that of a mapping with MAP_NORESERVE; each mapping is charged by itself.
func anonSegment(seg *image.Segment) (int, error) {
	flags := unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if seg.Huge != 0 {
		flags |= unix.MAP_HUGETLB | int(seg.Huge)<<unix.MAP_HUGE_SHIFT
	}
	b, err := unix.Mmap(-1, 0, int(seg.Size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return -1, fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(b) // the descriptor keeps the memory
	m, err := mappingOf(addressOf(b))
	if err != nil {
		return -1, err
	}
	path := fmt.Sprintf("/proc/self/map_files/%x-%x", m.Start, m.End)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &HostError{What: "open " + path, Err: err, Remedy: "restore needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run it as root"}
	}
	return fd, nil
}

// mappingOf finds the mapping of this process at an address.
func mappingOf(addr uint64) (procfs.Mapping, error) {
	text, err := quickread.File("/proc/self/maps")
	if err != nil {
		return procfs.Mapping{}, err
	}
	maps, err := procfs.ParseMaps(text)
	if err != nil {
		return procfs.Mapping{}, err
	}
	for _, m := range maps {
		if m.Start <= addr && addr < m.End {
			return m, nil
		}
	}
	return procfs.Mapping{}, fmt.Errorf("no mapping of ours at %#x", addr)
}

// fillSegment writes the image's pages into a segment. The last page of a memfd may end
// before the page does.
func (j *job) fillSegment(ref image.ObjRef, fd int) error {
	seg := &j.m.Segments[ref-1]
	if seg.Huge != 0 {
		return j.fillHuge(ref, fd)
	}
	buf := make([]byte, copyLen)
	for e, ext := range seg.Extents {
		off := j.r.SegmentOffset(ref, e)
		for done := uint64(0); done < ext.Len; {
			n := min(ext.Len-done, copyLen)
			if _, err := j.r.ReadAt(buf[:n], off+int64(done)); err != nil {
				return fmt.Errorf("read the image: %w", err)
			}
			at := int64(ext.Start + done)
			if err := writeAll(fd, buf[:min(int64(n), max(seg.Size-at, 0))], at); err != nil {
				return err
			}
			done += n
		}
	}
	return nil
}

// writeAll writes b at an offset.
func writeAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil {
			return fmt.Errorf("write %d bytes at offset %#x: %w", len(b), off, err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// segment is kind.Env.Segment.
func (j *job) segment(ref image.ObjRef) (int, error) {
	if ref == 0 || int(ref) > len(j.segs) || j.m.Segments[ref-1].SysV != nil {
		return -1, &ImageError{0, fmt.Sprintf("there is no shared memory %d that a file could have", ref)}
	}
	return j.segs[ref-1], nil
}

// sealSegments adds the seals of memfds. It comes after they have been mapped, since
// F_SEAL_FUTURE_WRITE lets older writable mappings live on but no new ones.
func (j *job) sealSegments() error {
	for i := range j.m.Segments {
		seg := &j.m.Segments[i]
		if !seg.Memfd || seg.Seals == 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(j.segs[i]), unix.F_ADD_SEALS, int(seg.Seals)); err != nil {
			return fmt.Errorf("memfd %q: add the seals %#x: %w", seg.Name, seg.Seals, err)
		}
	}
	return nil
}
