package ckpt

import (
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// PAGEMAP_SCAN of linux/fs.h (Linux 6.7), see Documentation/admin-guide/mm/pagemap.rst.
const (
	pagemapScan = 0xc0606610

	pageIsWritten = 1 << 1 // no longer write-protected by a userfaultfd
	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsPfnZero = 1 << 5
	pageIsGuard   = 1 << 8 // Linux 6.15: MADV_GUARD_INSTALL

	pmScanWPMatching   = 1 << 0 // protect what is found, at the same time
	pmScanCheckWPAsync = 1 << 1 // EPERM where a range is not tracked
)

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, returned                         uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	start, end, categories uint64
}

// scanner finds the pages of a process that hold something.
type scanner struct {
	pid     int
	pagemap *os.File
	vec     []pageRegion
	guards  bool // the kernel can tell guard regions
}

func newScanner(pid int) (*scanner, error) {
	f, err := os.Open(procPath(pid, "pagemap"))
	if err != nil {
		return nil, err
	}
	s := &scanner{pid: pid, pagemap: f, vec: make([]pageRegion, 512)}
	guardsShown.Do(func() { // a kernel that does not know the category answers EINVAL before it looks at a page
		guardsAre = s.scan(0, 0, &pmScanArg{mask: pageIsGuard, returned: pageIsGuard}, func(pageRegion) {}) == nil
	})
	s.guards = guardsAre
	return s, nil
}

// guardsAre says, after guardsShown, whether PAGEMAP_SCAN tells guard regions.
var (
	guardsShown sync.Once
	guardsAre   bool
)

func (s *scanner) close() {
	if s != nil {
		s.pagemap.Close()
	}
}

// scan runs PAGEMAP_SCAN over [start, end) and calls f for each region it reports.
func (s *scanner) scan(start, end uint64, arg *pmScanArg, f func(pageRegion)) error {
	for {
		a := *arg
		a.size, a.start, a.end = uint64(unsafe.Sizeof(a)), start, end
		a.vec = uint64(uintptr(unsafe.Pointer(&s.vec[0])))
		if a.vecLen == 0 {
			a.vecLen = uint64(len(s.vec))
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, s.pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&a)))
		runtime.KeepAlive(s)
		if errno != 0 {
			return fmt.Errorf("pid %d: PAGEMAP_SCAN of %#x-%#x: %w", s.pid, start, end, errno)
		}
		for _, r := range s.vec[:n] {
			f(r)
		}
		if a.walkEnd >= end || a.walkEnd <= start {
			return nil
		}
		start = a.walkEnd
	}
}

// pages returns the pages of an area that an image has to hold: those that are present or
// swapped out, but not the shared zero page and, in a private file mapping, not those that
// are still the file's own. And it returns the guard regions of the area, which count as
// swapped out.
func (s *scanner) pages(a *area) (extents, guards []image.Extent, err error) {
	if a.HasFlag("ht") {
		extents, err = s.hugeExtents(a)
		return extents, nil, err
	}
	arg := pmScanArg{anyOf: pageIsPresent | pageIsSwapped, inverted: pageIsPfnZero, mask: pageIsPfnZero,
		returned: pageIsPresent | pageIsSwapped}
	if s.guards {
		arg.returned |= pageIsGuard
	}
	if a.kind != image.VMAAnon {
		arg.inverted |= pageIsFile
		arg.mask |= pageIsFile
	}
	err = s.scan(a.Start, a.End, &arg, func(r pageRegion) {
		if r.categories&pageIsGuard != 0 {
			guards = appendExtent(guards, r)
		} else {
			extents = appendExtent(extents, r)
		}
	})
	return extents, guards, err
}

// appendExtent adds a region, which may go on where the last one ends.
func appendExtent(to []image.Extent, r pageRegion) []image.Extent {
	if n := len(to); n > 0 && to[n-1].Start+to[n-1].Len == r.start {
		to[n-1].Len += r.end - r.start
		return to
	}
	return append(to, image.Extent{Start: r.start, Len: r.end - r.start})
}

// hugeExtents is pages for hugetlb, which knows no zero page.
func (s *scanner) hugeExtents(a *area) ([]image.Extent, error) {
	var out []image.Extent
	arg := pmScanArg{anyOf: pageIsPresent | pageIsSwapped, returned: pageIsPresent}
	if a.kind != image.VMAAnon { // not those that are still the file's own
		arg.inverted, arg.mask = pageIsFile, pageIsFile
	}
	err := s.scan(a.Start, a.End, &arg, func(r pageRegion) {
		out = append(out, image.Extent{Start: r.start, Len: r.end - r.start})
	})
	return out, err
}

// guardsOf returns the guard regions (MADV_GUARD_INSTALL) of an area that has no pages of its own.
func (s *scanner) guardsOf(a *area) (out []image.Extent, err error) {
	if !s.guards || a.HasFlag("ht") || a.kind == image.VMAVDSO || a.kind == image.VMAVvar || a.kind == image.VMARing || a.kind == image.VMAAIO {
		return nil, nil
	}
	err = s.scan(a.Start, a.End, &pmScanArg{mask: pageIsGuard, returned: pageIsGuard}, func(r pageRegion) {
		out = appendExtent(out, r)
	})
	return out, err
}

// extentsLen is the number of bytes in extents.
func extentsLen(es []image.Extent) (n uint64) {
	for _, e := range es {
		var carry uint64
		n, carry = bits.Add64(n, e.Len, 0)
		if carry != 0 {
			return ^uint64(0)
		}
	}
	return n
}
