// Package uffd is the interface of userfaultfd(2), linux/userfaultfd.h: memory that is filled, or whose writes are
// followed, from outside.
package uffd

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FD is the descriptor of a userfaultfd. Its methods fail with ESRCH when the memory behind it is no more: the
// process has ended or executes another program.
type FD int

// UserModeOnly is a flag of userfaultfd(2): faults in the kernel are not told, and everybody may have one.
const UserModeOnly = 1

// Features of a userfaultfd.
const (
	Fork          = 1 << 1
	Remap         = 1 << 2
	Remove        = 1 << 3
	Unmap         = 1 << 6
	ThreadID      = 1 << 8
	WPUnpopulated = 1 << 13
	Poison        = 1 << 14 // Linux 6.6
	WPAsync       = 1 << 15 // Linux 6.7: a write lifts the protection of its page without asking anybody
)

// What a range is registered for.
const (
	Missing      = 1 << 0
	WriteProtect = 1 << 1
)

// The ioctls.
const (
	callAPI          = 0xc018aa3f
	callRegister     = 0xc020aa00
	callUnregister   = 0x8010aa01
	callWake         = 0x8010aa02
	callCopy         = 0xc028aa03
	callZero         = 0xc020aa04
	callWriteProtect = 0xc018aa06
	callPoison       = 0xc020aa08
)

type (
	argAPI      struct{ api, features, _ uint64 }
	argRange    struct{ start, length uint64 }
	argRegister struct {
		argRange
		mode, _ uint64 // and which ioctls work there
	}
	argProtect struct {
		argRange
		_ uint64 // mode 0: lift it
	}
	argCopy struct {
		dst, src, length, _ uint64
		done                int64
	}
	argFill struct { // uffdio_zeropage and uffdio_poison
		argRange
		_    uint64
		done int64
	}
)

func ioctl[T any](f FD, call uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f), call, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}

// New makes a userfaultfd for the memory of this process, with flags of userfaultfd(2).
func New(flags int) (FD, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("userfaultfd: %w", errno)
	}
	return FD(fd), nil
}

// Init chooses the features, as the first thing. A kernel without one of them answers EINVAL.
func (f FD) Init(features uint64) error {
	const version = 0xaa
	if err := ioctl(f, callAPI, &argAPI{api: version, features: features}); err != nil {
		return fmt.Errorf("UFFDIO_API with features %#x: %w", features, err)
	}
	return nil
}

// Register takes a range under the userfaultfd, for what modes say. EBUSY: another one has it.
func (f FD) Register(start, length, modes uint64) error {
	if err := ioctl(f, callRegister, &argRegister{argRange: argRange{start, length}, mode: modes}); err != nil {
		return fmt.Errorf("UFFDIO_REGISTER of %#x-%#x: %w", start, start+length, err)
	}
	return nil
}

// Unregister gives a range back. What is not registered is no error.
func (f FD) Unregister(start, length uint64) error {
	if err := ioctl(f, callUnregister, &argRange{start, length}); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("UFFDIO_UNREGISTER of %#x-%#x: %w", start, start+length, err)
	}
	return nil
}

// Unprotect lifts the write protection of a range.
func (f FD) Unprotect(start, length uint64) error {
	if err := ioctl(f, callWriteProtect, &argProtect{argRange: argRange{start, length}}); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("UFFDIO_WRITEPROTECT of %#x-%#x: %w", start, start+length, err)
	}
	return nil
}

// Copy puts b at an address where nothing is, and lets go on who waits for that. It returns how much it has put, also with an
// error. It does not allocate.
func (f FD) Copy(addr uint64, b []byte) (uint64, error) {
	c := argCopy{dst: addr, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), length: uint64(len(b))}
	err := ioctl(f, callCopy, &c)
	return uint64(max(c.done, 0)), err
}

// Zero puts zero pages where nothing is.
func (f FD) Zero(addr, length uint64) (uint64, error) { return f.fill(callZero, addr, length) }

// Poison makes touching the pages a SIGBUS.
func (f FD) Poison(addr, length uint64) (uint64, error) { return f.fill(callPoison, addr, length) }

func (f FD) fill(call uintptr, addr, length uint64) (uint64, error) {
	a := argFill{argRange: argRange{addr, length}}
	err := ioctl(f, call, &a)
	return uint64(max(a.done, 0)), err
}

// Wake lets threads go on that wait for a page which is there.
func (f FD) Wake(addr, length uint64) error { return ioctl(f, callWake, &argRange{addr, length}) }

// Close gives everything back: what is missing becomes zero pages, what is protected can be written to.
func (f FD) Close() error { return unix.Close(int(f)) }
