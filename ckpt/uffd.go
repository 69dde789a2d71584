package ckpt

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interface of linux/userfaultfd.h, as far as the tracking of writes needs it.
const (
	uffdAPI            = 0xaa
	uffdWPAsync        = 1 << 15 // UFFD_FEATURE_WP_ASYNC, Linux 6.7: the kernel resolves the faults itself
	uffdWPUnpopulated  = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED, which it implies
	uffdModeWP         = 2
	uffdioAPICall      = 0xc018aa3f
	uffdioRegisterCall = 0xc020aa00
	uffdioUnregister   = 0x8010aa01
	uffdioWriteProtect = 0xc018aa06

	lowPage = 0x1000 // below where mappings begin, as a rule
)

type uffdioAPI struct{ api, features, ioctls uint64 }
type uffdioRange struct{ start, length uint64 }
type uffdioRegister struct {
	uffdioRange
	mode, ioctls uint64
}

// writeTracking is a userfaultfd(2) that write-protects memory of one process asynchronously: a
// write lifts the protection of a page without asking anybody, and PAGEMAP_SCAN tells which
// pages are protected no more. The process never waits for us. When the last descriptor is closed
// everything is as before.
type writeTracking int

// newWriteTracking takes over fd.
func newWriteTracking(fd int) (writeTracking, error) {
	a := uffdioAPI{api: uffdAPI, features: uffdWPAsync | uffdWPUnpopulated}
	if err := uffdCall(fd, uffdioAPICall, unsafe.Pointer(&a)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write tracking needs UFFD_FEATURE_WP_ASYNC (Linux 6.7): %w", err)
	}
	return writeTracking(fd), nil
}

// register begins to track a range, which is one mapping of anonymous memory. Nothing is protected
// yet. Errors: EBUSY (somebody else tracks it), ESRCH (the process has another address space now).
func (w writeTracking) register(start, end uint64) error {
	r := uffdioRegister{uffdioRange{start, end - start}, uffdModeWP, 0}
	if err := uffdCall(int(w), uffdioRegisterCall, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("UFFDIO_REGISTER of %#x-%#x: %w", start, end, err)
	}
	return nil
}

// unregister ends it. What is not registered is no error.
func (w writeTracking) unregister(start, end uint64) error {
	r := uffdioRange{start, end - start}
	if err := uffdCall(int(w), uffdioUnregister, unsafe.Pointer(&r)); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("UFFDIO_UNREGISTER of %#x-%#x: %w", start, end, err)
	}
	return nil
}

// unprotect lifts the protection of a range, which is registered: all its pages count as written.
func (w writeTracking) unprotect(start, end uint64) error {
	if err := w.writeProtect(start, end-start); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("UFFDIO_WRITEPROTECT of %#x-%#x: %w", start, end, err)
	}
	return nil
}

func (w writeTracking) writeProtect(start, length uint64) error {
	p := struct {
		uffdioRange
		mode uint64 // 0: lift it
	}{uffdioRange{start, length}, 0}
	return uffdCall(int(w), uffdioWriteProtect, unsafe.Pointer(&p))
}

// alive reports whether the address space still exists that it is for: a process that calls exec gets another one.
func (w writeTracking) alive() bool {
	return !errors.Is(w.writeProtect(lowPage, pageSize), unix.ESRCH) // nothing is there
}

// close ends all of it. The kernel goes through all page tables then (33 ms for each GiB of small
// pages), and mmap(2) of the process waits: see tracked.release, which does so in pieces.
func (w writeTracking) close() { unix.Close(int(w)) }

func uffdCall(fd int, call uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}
