package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// snapshot writes the memory of stopped processes to w, the way an image holds it, and returns
// the regions in the order of the file. Unlike the engine it refuses nothing, so it also takes
// programs whose files or sockets cannot be kept.
func snapshot(pids []int, w io.Writer) ([]region, error) {
	t := taker{w: w, buf: make([]byte, 1<<20), segments: map[[2]uint64]bool{}}
	for _, pid := range pids {
		if err := t.process(pid); err != nil {
			return nil, fmt.Errorf("pid %d: %w", pid, err)
		}
	}
	err := t.writeShared()
	return append(t.private, t.shared...), err
}

// stopTree stops a process and all its descendants and waits until they stand.
func stopTree(root int) ([]int, error) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		if err := unix.Kill(pids[i], unix.SIGSTOP); err != nil {
			return pids[:i], fmt.Errorf("cannot stop pid %d: %w", pids[i], err)
		}
		if err := waitStopped(pids[i]); err != nil {
			return pids[:i+1], err
		}
		children, err := childrenOf(pids[i])
		if err != nil {
			return pids[:i+1], err
		}
		pids = append(pids, children...)
	}
	return pids, nil
}

// cont lets stopped processes go on.
func cont(pids []int) (err error) {
	for _, pid := range pids {
		err = errors.Join(err, unix.Kill(pid, unix.SIGCONT))
	}
	return err
}

// waitStopped waits until no thread of a process runs.
func waitStopped(pid int) error {
	for range 2000 {
		running, err := eachTask(pid, func(dir string) (int, error) {
			b, err := os.ReadFile(dir + "/stat")
			if err != nil {
				return 0, err
			}
			s, err := procfs.ParseStat(b)
			if err != nil || s.State == 'T' {
				return 0, err
			}
			return 1, nil
		})
		if err != nil || running == 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("pid %d does not stop", pid)
}

// eachTask sums what f returns for every thread of a process.
func eachTask(pid int, f func(dir string) (int, error)) (sum int, err error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		n, err := f(dir + "/" + t.Name())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// childrenOf returns the children of all threads of a process.
func childrenOf(pid int) (pids []int, err error) {
	_, err = eachTask(pid, func(dir string) (int, error) {
		b, err := os.ReadFile(dir + "/children")
		if err != nil {
			return 0, err
		}
		more, err := procfs.ParsePIDs(b)
		pids = append(pids, more...)
		return 0, err
	})
	return pids, err
}

// taker writes memory. Private memory comes first, as in an image; shared memory is written
// once however many processes map it.
type taker struct {
	w               io.Writer
	buf             []byte
	private, shared []region
	segments        map[[2]uint64]bool // by device and inode
	files           []*os.File         // of shared
}

// process writes the private memory of one process and notes what it shares.
func (t *taker) process(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	maps, err := procfs.ParseMaps(b)
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for i := range maps {
		m := &maps[i]
		what := fmt.Sprintf("pid %d %x-%x %s", pid, m.Start, m.End, m.Path)
		switch {
		case strings.HasPrefix(m.Path, "[v"): // [vdso], [vvar], [vsyscall]: the kernel's own
		case m.Shared:
			err = t.noteShared(pid, m, what)
		default:
			err = t.area(mem, pagemap, m, what)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// area writes the stored pages of one private mapping.
func (t *taker) area(mem, pagemap *os.File, m *procfs.Mapping, what string) error {
	extents, err := scan(pagemap, m)
	if err != nil || len(extents) == 0 {
		return err
	}
	t.private = append(t.private, region{What: what, Extents: extents})
	return t.copyExtents(mem, extents)
}

func (t *taker) copyExtents(from io.ReaderAt, extents []image.Extent) error {
	for _, e := range extents {
		for done := uint64(0); done < e.Len; {
			b := t.buf[:min(e.Len-done, uint64(len(t.buf)))]
			if _, err := from.ReadAt(b, int64(e.Start+done)); err != nil {
				return fmt.Errorf("read %d bytes at %#x: %w", len(b), e.Start+done, err)
			}
			if _, err := t.w.Write(b); err != nil {
				return err
			}
			done += uint64(len(b))
		}
	}
	return nil
}

// noteShared keeps a shared segment open, unless it is a mapped file, whose pages the file has.
func (t *taker) noteShared(pid int, m *procfs.Mapping, what string) error {
	memory := slices.ContainsFunc([]string{"/dev/zero", "/SYSV", "/dev/shm/", "/memfd:", "[anon_shmem"},
		func(p string) bool { return strings.HasPrefix(m.Path, p) })
	key := [2]uint64{m.Dev, m.Ino}
	if !memory || t.segments[key] {
		return nil
	}
	t.segments[key] = true
	f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End))
	if err != nil {
		return err
	}
	extents, err := dataOf(f)
	if err != nil || len(extents) == 0 {
		f.Close() // nothing was read
		return err
	}
	t.shared = append(t.shared, region{What: "segment of " + what, Extents: extents})
	t.files = append(t.files, f)
	return nil
}

// dataOf returns where a file of shared memory has pages.
func dataOf(f *os.File) (extents []image.Extent, err error) {
	for off := int64(0); ; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return extents, nil
		}
		if err != nil {
			return nil, err
		}
		if off, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		if n := uint64(off-start) &^ (pageSize - 1); n > 0 { // a segment may be shorter than a page
			extents = append(extents, image.Extent{Start: uint64(start), Len: n})
		}
	}
}

func (t *taker) writeShared() (err error) {
	for i, f := range t.files {
		if err == nil {
			err = t.copyExtents(f, t.shared[i].Extents)
		}
		f.Close() // only read
	}
	return err
}

// PAGEMAP_SCAN of linux/fs.h (Linux 6.7).
const (
	pagemapScan   = 0xc0606610
	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsPfnZero = 1 << 5
)

// pmScanArg is struct pm_scan_arg. The pointer keeps vec off the stack, which moves.
type pmScanArg struct {
	size, flags, start, end, walkEnd uint64
	vec                              unsafe.Pointer
	vecLen, maxPages                 uint64
	inverted, mask, anyOf, returned  uint64
}

// scan returns the pages of a private mapping that an image holds: present or swapped out,
// but neither the shared zero page nor the file's own.
func scan(pagemap *os.File, m *procfs.Mapping) (extents []image.Extent, err error) {
	vec := make([][3]uint64, 512) // struct page_region: start, end, categories
	skip := uint64(pageIsPfnZero)
	if m.Ino != 0 {
		skip |= pageIsFile
	}
	for start := m.Start; start < m.End; {
		a := pmScanArg{start: start, end: m.End, vec: unsafe.Pointer(unsafe.SliceData(vec)), vecLen: uint64(len(vec)),
			inverted: skip, mask: skip, anyOf: pageIsPresent | pageIsSwapped, returned: pageIsPresent | pageIsSwapped}
		a.size = uint64(unsafe.Sizeof(a))
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&a)))
		if errno != 0 {
			return nil, fmt.Errorf("PAGEMAP_SCAN: %w", errno)
		}
		for _, r := range vec[:n] {
			if last := len(extents) - 1; last >= 0 && extents[last].Start+extents[last].Len == r[0] {
				extents[last].Len += r[1] - r[0]
			} else {
				extents = append(extents, image.Extent{Start: r[0], Len: r[1] - r[0]})
			}
		}
		if a.walkEnd <= start {
			break
		}
		start = a.walkEnd
	}
	return extents, nil
}
