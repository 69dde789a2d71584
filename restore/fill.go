package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// copyLen is how much memory is copied at a time: what fits into the CPU's cache.
const copyLen = 512 << 10

// filler writes pages into a stub's address space. Fresh private anonymous memory in 4 KiB
// pages is filled by UFFDIO_COPY, which takes less than half the time of the others, as
// nothing is zeroed before and no fault is taken. What is writable otherwise, huge pages above
// all, is filled by process_vm_writev(2), many pieces in a call, and the rest, whatever its
// protection, through /proc/PID/mem, piece by piece.
type filler struct {
	p    *proc
	uffd uffd.FD // -1: the kernel gives us none
	src  io.ReaderAt
}

// area is a VMA that is filled.
type area struct {
	vma  *image.VMA
	fast bool // through the userfaultfd
}

// worthUFFD is how many bytes of a VMA make registering it worthwhile.
const worthUFFD = 256 << 10

// newFiller prepares for the memory of p.
func newFiller(p *proc, src io.ReaderAt) *filler {
	f := &filler{p: p, uffd: -1, src: src}
	if fd, err := takeUFFD(p); err == nil { // without it memory is filled more slowly
		f.uffd = fd
	}
	return f
}

// takeUFFD makes a userfaultfd(2) for filling in the stub and fetches it.
func takeUFFD(p *proc) (uffd.FD, error) {
	fd, err := fetchUFFD(p, unix.O_CLOEXEC|unix.O_NONBLOCK|uffd.UserModeOnly)
	if err != nil {
		return -1, err
	}
	if err := fd.Init(0); err != nil {
		closeFD(int(fd))
		return -1, err
	}
	return fd, nil
}

// fetchUFFD makes a userfaultfd(2) in the stub and fetches it.
func fetchUFFD(p *proc, flags uint64) (uffd.FD, error) {
	num, err := p.call("userfaultfd", unix.SYS_USERFAULTFD, flags)
	if err != nil {
		return -1, err
	}
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(num), 0)
	if err != nil {
		return -1, err
	}
	if _, err := p.call("close", unix.SYS_CLOSE, num); err != nil {
		closeFD(fd)
		return -1, err
	}
	return uffd.FD(fd), nil
}

// close takes the userfaultfd away, from all areas.
func (f *filler) close() { closeFD(int(f.uffd)) }

// area prepares a VMA for being filled.
func (f *filler) area(v *image.VMA) *area {
	a := &area{vma: v}
	if viaUFFD(v) {
		a.fast = f.register(v) // else the slow way
	}
	return a
}

// register takes a VMA under the userfaultfd.
func (f *filler) register(v *image.VMA) bool {
	if f.uffd < 0 {
		return false
	}
	return f.uffd.Register(v.Start, v.End-v.Start, uffd.Missing) == nil
}

// viaUFFD reports whether a VMA is filled through a userfaultfd if there is one.
func viaUFFD(v *image.VMA) bool {
	return v.Kind == image.VMAAnon && !v.THP && v.Flags&unix.MAP_HUGETLB == 0 && stored(v) >= worthUFFD
}

// stored is how much of a VMA the image holds.
func stored(v *image.VMA) (n uint64) {
	for _, e := range v.Extents {
		n += e.Len
	}
	return n
}

// piece is some pages of the image and where they go.
type piece struct {
	addr, length uint64
	off          int64
	area         *area
}

// hugePage is the size of a huge page. Two goroutines that touch the same one first would
// both make it, and one of them for nothing.
const hugePage = 2 << 20

// pieces adds the extents of a VMA, cut into what is copied at a time, to lots: each is for one
// goroutine. What lies in one huge page is in one lot, and small pieces share one.
func pieces(lots [][]piece, a *area, offset func(extent int) int64) [][]piece {
	size := uint64(copyLen) // of the last lot
	if n := len(lots); n > 0 {
		size = 0
		for _, p := range lots[n-1] {
			size += p.length
		}
	}
	for i, e := range a.vma.Extents {
		for done := uint64(0); done < e.Len; {
			p := piece{addr: e.Start + done, off: offset(i) + int64(done), area: a}
			p.length = min(e.Len-done, copyLen-p.addr%copyLen)
			if n := len(lots); n > 0 && (size+p.length <= copyLen || lastOf(lots).addr/hugePage == p.addr/hugePage) {
				lots[n-1] = append(lots[n-1], p)
			} else {
				lots, size = append(lots, []piece{p}), 0
			}
			size += p.length
			done += p.length
		}
	}
	return lots
}

// lastOf is the last piece of the last lot.
func lastOf(lots [][]piece) piece {
	lot := lots[len(lots)-1]
	return lot[len(lot)-1]
}

// copiers is how many goroutines copy the pages of a process: more are slower, as they all
// wait for memory.
const copiers = 2

// buffers are of copyLen bytes.
var buffers = sync.Pool{New: func() any { return new([copyLen]byte) }}

// copy copies pages from the image.
func (f *filler) copy(ctx context.Context, lots [][]piece) error {
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, min(copiers, len(lots)))
	work := func(i int) {
		buf := buffers.Get().(*[copyLen]byte)
		defer buffers.Put(buf)
		for n := next.Add(1) - 1; n < int64(len(lots)) && errs[i] == nil; n = next.Add(1) - 1 {
			errs[i] = f.copyLot(ctx, lots[n], buf[:])
		}
	}
	for i := 1; i < len(errs); i++ {
		group.Go(func() { work(i) })
	}
	if len(errs) > 0 {
		work(0)
	}
	group.Wait()
	return errors.Join(errs...)
}

// copyLot copies the pieces of a lot: at once those that are read together.
func (f *filler) copyLot(ctx context.Context, lot []piece, buf []byte) error {
	for len(lot) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, size := together(lot)
		b := buf[:size]
		if got, err := f.src.ReadAt(b, lot[0].off); got < len(b) {
			return fmt.Errorf("read the image at %d: %w", lot[0].off, err)
		}
		if err := f.write(lot[:n], b); err != nil {
			return err
		}
		lot = lot[n:]
	}
	return nil
}

// together counts the pieces at the beginning of a lot, and their bytes, that follow each other in
// the image, and fit into a buffer and one process_vm_writev(2).
func together(lot []piece) (n int, size uint64) {
	const iovMax = 1024 // UIO_MAXIOV of linux/uio.h
	for n < len(lot) && n < iovMax {
		p := lot[n]
		if n > 0 && (p.off != lot[0].off+int64(size) || size+p.length > copyLen) {
			break
		}
		size += p.length
		n++
	}
	return n, size
}

// The ways to write to an area.
const (
	wayUFFD = iota
	wayVector
	wayMem
)

func (a *area) way() int {
	switch {
	case a.fast:
		return wayUFFD
	case a.vma.Prot&unix.PROT_WRITE != 0, firstProt(a.vma)&unix.PROT_WRITE != 0 && !protectFirst(a.vma):
		return wayVector
	}
	return wayMem
}

// write writes b to the pieces that it is the content of, in memory of the process, which is stopped.
func (f *filler) write(ps []piece, b []byte) error {
	var local []unix.Iovec
	var remote []unix.RemoteIovec
	at, total := uint64(0), 0
	for i := range ps {
		if p := &ps[i]; p.area.way() == wayVector {
			local = append(local, unix.Iovec{Base: &b[at], Len: p.length})
			remote = append(remote, unix.RemoteIovec{Base: uintptr(p.addr), Len: int(p.length)})
			total += int(p.length)
		}
		at += ps[i].length
	}
	written := false
	if total > 0 {
		n, err := unix.ProcessVMWritev(f.p.pid, local, remote, 0)
		written = err == nil && n == total
	}
	for i := range ps {
		p := &ps[i]
		if !written || p.area.way() != wayVector {
			if err := f.writePiece(p, b[:p.length]); err != nil {
				return err
			}
		}
		b = b[p.length:]
	}
	return nil
}

func (f *filler) writePiece(p *piece, b []byte) error {
	if p.area.fast {
		if _, err := f.uffd.Copy(p.addr, b); err == nil {
			return nil
		}
	}
	if _, err := f.p.rem.Mem().WriteAt(b, int64(p.addr)); err != nil {
		return fmt.Errorf("write %d bytes at %#x of %#x-%#x: %w", len(b), p.addr, p.area.vma.Start, p.area.vma.End, err)
	}
	return nil
}

// addressOf is where b lies in our memory.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
