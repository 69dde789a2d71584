package restore

import (
	"fmt"
	"io"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// copyLen is how much memory is copied at a time: what fits into the CPU's cache.
const copyLen = 512 << 10

// filler writes pages into a stub's address space. Fresh private anonymous memory in 4 KiB
// pages is filled by UFFDIO_COPY, which takes less than half the time of writing to
// /proc/PID/mem, as nothing is zeroed before and no fault is taken. Everything else is
// written there, whatever its protection.
type filler struct {
	p    *proc
	buf  []byte
	uffd int  // -1: the kernel gives us none
	fast bool // the VMA that is open is filled through uffd
	vma  *image.VMA
}

// worthUFFD is how many bytes of a VMA make registering it worthwhile.
const worthUFFD = 256 << 10

// newFiller prepares for the memory of p.
func newFiller(p *proc) (*filler, error) {
	f := &filler{p: p, buf: make([]byte, copyLen), uffd: -1}
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
func (f *filler) open(v *image.VMA) error {
	f.done()
	f.vma = v
	total := uint64(0)
	for _, e := range v.Extents {
		total += e.Len
	}
	if f.uffd < 0 || v.Kind != image.VMAAnon || v.THP || v.Flags&unix.MAP_HUGETLB != 0 || total < worthUFFD {
		return nil
	}
	reg := uffdioRegister{start: v.Start, length: v.End - v.Start, mode: uffdModeMissing}
	f.fast = ioctl(f.uffd, uffdioRegisterCall, unsafe.Pointer(&reg)) == nil // else the slow way
	return nil
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

// extent copies the pages of an extent from the image.
func (f *filler) extent(src io.ReaderAt, e image.Extent, off int64) error {
	for done := uint64(0); done < e.Len; {
		b := f.buf[:min(e.Len-done, uint64(len(f.buf)))]
		if n, err := src.ReadAt(b, off+int64(done)); n < len(b) {
			return fmt.Errorf("read the image at %d: %w", off+int64(done), err)
		}
		if err := f.write(e.Start+done, b); err != nil {
			return err
		}
		done += uint64(len(b))
	}
	return nil
}

func (f *filler) write(addr uint64, b []byte) error {
	if f.fast {
		c := uffdioCopy{dst: addr, src: addressOf(b), length: uint64(len(b))}
		if err := ioctl(f.uffd, uffdioCopyCall, unsafe.Pointer(&c)); err == nil {
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
