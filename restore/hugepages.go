package restore

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// hugeNeeds counts, by the log2 of their size, the huge pages that an image takes: those that have
// content, and those that a mapping without MAP_NORESERVE reserves. Segments of System V that are there
// have theirs.
func hugeNeeds(m *image.Manifest, there map[image.ObjRef]bool) map[uint32]uint64 {
	shared := map[image.ObjRef][]span{}
	out := map[uint32]uint64{}
	for i := range m.Segments {
		if m.Segments[i].SysV != nil { // shmget(2) reserves all of it
			shared[image.ObjRef(i+1)] = append(shared[image.ObjRef(i+1)], span{0, uint64(m.Segments[i].Size)})
		}
		for _, e := range m.Segments[i].Extents {
			shared[image.ObjRef(i+1)] = append(shared[image.ObjRef(i+1)], span{e.Start, e.Start + e.Len})
		}
	}
	for i := range m.MMs {
		for k := range m.MMs[i].VMAs {
			v := &m.MMs[i].VMAs[k]
			shift := v.Flags >> unix.MAP_HUGE_SHIFT & unix.MAP_HUGE_MASK
			switch {
			case v.Flags&unix.MAP_HUGETLB == 0:
			case v.Kind == image.VMASegment && v.Flags&unix.MAP_SHARED != 0:
				if v.Flags&unix.MAP_NORESERVE == 0 {
					shared[v.Segment] = append(shared[v.Segment], span{v.Offset, v.Offset + v.End - v.Start})
				}
			case v.Flags&unix.MAP_SHARED == 0:
				own := []span{{v.Start, v.End}}
				if v.Flags&unix.MAP_NORESERVE != 0 {
					own = nil
					for _, e := range v.Extents {
						own = append(own, span{e.Start, e.Start + e.Len})
					}
				}
				out[shift] += pagesOf(own, shift)
			}
		}
	}
	for i := range m.Segments {
		if shift := m.Segments[i].Huge; shift != 0 && !there[image.ObjRef(i+1)] {
			out[shift] += pagesOf(shared[image.ObjRef(i+1)], shift)
		}
	}
	return out
}

// pagesOf counts the pages that some spans touch, each once.
func pagesOf(all []span, shift uint32) (n uint64) {
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.Start, b.Start) })
	next := uint64(0) // the first page that has not been counted
	for _, s := range all {
		from, to := max(s.Start>>shift, next), (s.End-1)>>shift+1
		if s.End > s.Start && to > from {
			n += to - from
			next = to
		}
	}
	return n
}

// checkHugePages makes sure that there are enough free huge pages.
func checkHugePages(m *image.Manifest) error {
	need := hugeNeeds(m, segmentsThere(m))
	for shift, n := range need {
		if n == 0 {
			continue
		}
		kib := uint64(1) << shift >> 10
		dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/", kib)
		pool, err := readPool(dir)
		if errors.Is(err, os.ErrNotExist) {
			return &HostError{What: fmt.Sprintf("the image needs %d huge pages of %d KiB, a size that this kernel does not have", n, kib), Remedy: "restore it on a machine that has it (see hugepagesz= of the kernel command line)"}
		}
		if err != nil {
			return fmt.Errorf("huge pages of %d KiB: %w", kib, err)
		}
		if free := pool.free(); free < n {
			return &HostError{What: fmt.Sprintf("the image needs %d huge pages of %d KiB, and %d are free", n, kib, free), Err: unix.ENOMEM,
				Remedy: fmt.Sprintf("reserve them: echo %d > %snr_hugepages%s", pool.total+n-free, dir, alias(kib))}
		}
	}
	return nil
}

// alias names the file in /proc/sys for pages of the size that it is about.
func alias(kib uint64) string {
	b, err := quickread.File("/proc/meminfo")
	if err == nil && strings.Contains(strings.Join(strings.Fields(string(b)), " "), fmt.Sprintf("Hugepagesize: %d kB", kib)) {
		return " (or /proc/sys/vm/nr_hugepages)"
	}
	return ""
}

// hugePool is what the kernel has of huge pages of one size
// (Documentation/admin-guide/mm/hugetlbpage.rst).
type hugePool struct {
	total, unused, reserved, overcommit, surplus uint64
}

func readPool(dir string) (p hugePool, err error) {
	for name, to := range map[string]*uint64{"nr_hugepages": &p.total, "free_hugepages": &p.unused, "resv_hugepages": &p.reserved,
		"nr_overcommit_hugepages": &p.overcommit, "surplus_hugepages": &p.surplus} {
		b, err := quickread.File(dir + name)
		if err != nil {
			return p, err
		}
		if *to, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63); err != nil {
			return p, fmt.Errorf("%s%s: %w", dir, name, err)
		}
	}
	return p, nil
}

// free is how many pages can still be had: unused ones that nobody has reserved, and those that
// the kernel may make on demand.
func (p *hugePool) free() uint64 {
	return p.unused - min(p.reserved, p.unused) + p.overcommit - min(p.surplus, p.overcommit)
}

// fillHuge writes the image's pages into a segment of huge pages, which no write(2) reaches. The
// pages are allocated before they are touched: a fault that finds none free is a SIGBUS.
func (j *job) fillHuge(ref image.ObjRef, fd int) error {
	seg := &j.m.Segments[ref-1]
	for e, ext := range seg.Extents {
		if err := unix.Fallocate(fd, 0, int64(ext.Start), int64(ext.Len)); err != nil {
			return fmt.Errorf("allocate huge pages for %d bytes at %#x: %w", ext.Len, ext.Start, err)
		}
		if err := j.copyHuge(fd, ext, seg.Huge, j.r.SegmentOffset(ref, e)); err != nil {
			return err
		}
	}
	return nil
}

// copyHuge copies an extent from the image at off.
func (j *job) copyHuge(fd int, ext image.Extent, shift uint32, off int64) error {
	page := uint64(1) << shift
	for done := uint64(0); done < ext.Len; {
		at := ext.Start + done
		base := at &^ (page - 1)
		b, err := unix.Mmap(fd, int64(base), int(page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			return fmt.Errorf("map a huge page at %#x: %w", base, err)
		}
		to := b[at-base : min(page, at-base+ext.Len-done)]
		_, err = j.r.ReadAt(to, off+int64(done))
		if err := errors.Join(err, unix.Munmap(b)); err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		done += uint64(len(to))
	}
	return nil
}
