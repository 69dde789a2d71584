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
	"golang.org/x/sys/unix"
)

// copyLen is how much memory is copied at a time: what fits into the CPU's cache.
const copyLen = 512 << 10

// filler writes pages into a stub's address space. Fresh private anonymous memory in 4 KiB
// pages is filled by UFFDIO_COPY, which takes less than half the time of the others, as
// nothing is zeroed before and no fault is taken. What is writable otherwise, huge pages above
// all, is filled by process_vm_writev(2), and the rest, whatever its protection, through
// /proc/PID/mem, page by page.
type filler struct {
	p    *proc
	uffd int  // -1: the kernel gives us none
	fast bool // the VMA that is open is filled through uffd
	vma  *image.VMA
}

// worthUFFD is how many bytes of a VMA make registering it worthwhile.
const worthUFFD = 256 << 10

// newFiller prepares for the memory of p.
func newFiller(p *proc) (*filler, error) {
	f := &filler{p: p, uffd: -1}
	fd, err := takeUFFD(p)
	if err != nil {
		return f, nil // without it memory is filled more slowly
	}
	f.uffd = fd
	return f, nil
}

// takeUFFD makes a userfaultfd(2) in the stub and fetches it.
func takeUFFD(p *proc) (int, error) {
	num, err := p.call("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly)
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
	api := uffdioAPI{api: uffdAPI}
	if err := ioctl(fd, uffdioAPICall, unsafe.Pointer(&api)); err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

func (f *filler) close() {
	f.done()
	closeFD(f.uffd)
}

// open begins with a VMA.
func (f *filler) open(v *image.VMA) {
	f.done()
	f.vma = v
	total := uint64(0)
	for _, e := range v.Extents {
		total += e.Len
	}
	if f.uffd < 0 || v.Kind != image.VMAAnon || v.THP || v.Flags&unix.MAP_HUGETLB != 0 || total < worthUFFD {
		return
	}
	reg := uffdioRegister{start: v.Start, length: v.End - v.Start, mode: uffdModeMissing}
	f.fast = ioctl(f.uffd, uffdioRegisterCall, unsafe.Pointer(&reg)) == nil // else the slow way
}

// done ends with a VMA.
func (f *filler) done() {
	if !f.fast {
		return
	}
	f.fast = false
	r := uffdioRange{f.vma.Start, f.vma.End - f.vma.Start}
	_ = ioctl(f.uffd, uffdioUnregisterCall, unsafe.Pointer(&r)) // closing the uffd does it as well
}

// piece is some pages of the image and where they go.
type piece struct {
	addr, length uint64
	off          int64
}

// hugePage is the size of a huge page. Two goroutines that touch the same one first would
// both make it, and one of them for nothing.
const hugePage = 2 << 20

// pieces cuts the extents of a VMA into what is copied at a time, in groups that each lie in
// one huge page.
func pieces(extents []image.Extent, offset func(extent int) int64) [][]piece {
	var out [][]piece
	for i, e := range extents {
		for done := uint64(0); done < e.Len; {
			p := piece{addr: e.Start + done, off: offset(i) + int64(done)}
			p.length = min(e.Len-done, copyLen-p.addr%copyLen)
			if n := len(out); n > 0 && out[n-1][0].addr/hugePage == p.addr/hugePage {
				out[n-1] = append(out[n-1], p)
			} else {
				out = append(out, []piece{p})
			}
			done += p.length
		}
	}
	return out
}

// copiers is how many goroutines copy the pages of one VMA: more are slower, as they all
// wait for memory.
const copiers = 2

// copy copies pages from the image into the VMA that is open.
func (f *filler) copy(ctx context.Context, src io.ReaderAt, all [][]piece) error {
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, min(copiers, len(all)))
	for i := range errs {
		group.Go(func() {
			buf := make([]byte, copyLen)
			for n := next.Add(1) - 1; n < int64(len(all)) && errs[i] == nil; n = next.Add(1) - 1 {
				errs[i] = f.copyGroup(ctx, src, all[n], buf)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func (f *filler) copyGroup(ctx context.Context, src io.ReaderAt, group []piece, buf []byte) error {
	for _, p := range group {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.copyPiece(src, p, buf); err != nil {
			return err
		}
	}
	return nil
}

func (f *filler) copyPiece(src io.ReaderAt, p piece, buf []byte) error {
	b := buf[:p.length]
	if n, err := src.ReadAt(b, p.off); n < len(b) {
		return fmt.Errorf("read the image at %d: %w", p.off, err)
	}
	return f.write(p.addr, b)
}

// write writes to memory of the process, which is stopped.
func (f *filler) write(addr uint64, b []byte) error {
	if f.fast {
		c := uffdioCopy{dst: addr, src: addressOf(b), length: uint64(len(b))}
		if err := ioctl(f.uffd, uffdioCopyCall, unsafe.Pointer(&c)); err == nil {
			return nil
		}
	}
	if firstProt(f.vma)&unix.PROT_WRITE != 0 {
		local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
		if n, err := unix.ProcessVMWritev(f.p.pid, local, remote, 0); err == nil && n == len(b) {
			return nil
		}
	}
	if _, err := f.p.rem.Mem().WriteAt(b, int64(addr)); err != nil {
		return fmt.Errorf("write %d bytes at %#x: %w", len(b), addr, err)
	}
	return nil
}

// addressOf is where b lies in our memory.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// The interface of linux/userfaultfd.h.
const (
	uffdUserModeOnly = 1
	uffdAPI          = 0xaa
	uffdModeMissing  = 1

	uffdioAPICall        = 0xc018aa3f
	uffdioRegisterCall   = 0xc020aa00
	uffdioUnregisterCall = 0x8010aa01
	uffdioCopyCall       = 0xc028aa03
)

type uffdioAPI struct{ api, features, ioctls uint64 }
type uffdioRange struct{ start, length uint64 }
type uffdioRegister struct{ start, length, mode, ioctls uint64 }
type uffdioCopy struct {
	dst, src, length, mode uint64
	copied                 int64
}

func ioctl(fd int, call uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
