package lazy

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interface of linux/userfaultfd.h.
const (
	apiVersion  = 0xaa
	modeMissing = 1

	featureFork     = 1 << 1
	featureRemap    = 1 << 2
	featureRemove   = 1 << 3
	featureUnmap    = 1 << 6
	featureThreadID = 1 << 8
	featurePoison   = 1 << 14

	callAPI      = 0xc018aa3f
	callRegister = 0xc020aa00
	callWake     = 0x8010aa02
	callCopy     = 0xc028aa03
	callZero     = 0xc020aa04
	callPoison   = 0xc020aa08

	eventFault  = 0x12
	eventFork   = 0x13
	eventRemap  = 0x14
	eventRemove = 0x15
	eventUnmap  = 0x16

	messageLen = 32
)

// features are what a userfaultfd must tell and do, or memory would come out wrong.
const features = featureFork | featureRemap | featureRemove | featureUnmap | featureThreadID | featurePoison

const pageSize = 4096

type (
	uffdAPI      struct{ api, features, ioctls uint64 }
	uffdRegister struct{ start, length, mode, ioctls uint64 }
	uffdRange    struct{ start, length uint64 }
	uffdCopy     struct {
		dst, src, length, mode uint64
		done                   int64
	}
	uffdFill struct { // uffdio_zeropage and uffdio_poison
		start, length, mode uint64
		done                int64
	}
)

func ioctl(fd int, call uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Prepare makes a userfaultfd, which has just been made without UFFD_USER_MODE_ONLY, tell of all
// that concerns the memory of its process.
func Prepare(fd int) error {
	a := uffdAPI{api: apiVersion, features: features}
	if err := ioctl(fd, callAPI, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("UFFDIO_API with the events of memory and UFFDIO_POISON: %w", err)
	}
	return nil
}

// Register hands the missing pages of a part of memory to a userfaultfd.
func Register(fd int, start, length uint64) error {
	r := uffdRegister{start: start, length: length, mode: modeMissing}
	if err := ioctl(fd, callRegister, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("register %#x-%#x with a userfaultfd: %w", start, start+length, err)
	}
	return nil
}

// Probe reports whether this process may do what a lazy restore needs.
func Probe() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd for faults in the kernel: %w", errno)
	}
	defer unix.Close(int(fd))
	return Prepare(int(fd))
}

// copyTo puts b at an address where nothing is. It returns how much it has put, also with an error.
func copyTo(fd int, addr uint64, b []byte) (uint64, error) {
	c := uffdCopy{dst: addr, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), length: uint64(len(b))}
	err := ioctl(fd, callCopy, unsafe.Pointer(&c))
	return uint64(max(c.done, 0)), err
}

// zero puts zero pages where nothing is.
func zero(fd int, addr, length uint64) (uint64, error) { return fill(fd, callZero, addr, length) }

// poison makes touching the pages a SIGBUS.
func poison(fd int, addr, length uint64) (uint64, error) { return fill(fd, callPoison, addr, length) }

func fill(fd int, call uintptr, addr, length uint64) (uint64, error) {
	f := uffdFill{start: addr, length: length}
	err := ioctl(fd, call, unsafe.Pointer(&f))
	return uint64(max(f.done, 0)), err
}

// wake lets threads go on that wait for a page which is there.
func wake(fd int, addr, length uint64) error {
	r := uffdRange{addr, length}
	return ioctl(fd, callWake, unsafe.Pointer(&r))
}

// gone reports whether the memory behind a userfaultfd is no more: the process has ended or
// executes another program.
func gone(fd int) bool {
	_, err := zero(fd, 0, pageSize)
	return err == unix.ESRCH
}

// message is a struct uffd_msg.
type message struct {
	event byte
	a     [3]uint64 // its arguments
}

func parseMessage(b []byte) message {
	le := binary.LittleEndian
	return message{b[0], [3]uint64{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}}
}

// fault is the address of a fault and the thread that waits.
func (m *message) fault() (addr uint64, tid int) { return m.a[1], int(uint32(m.a[2])) }

// fork is the userfaultfd of a child.
func (m *message) fork() int { return int(uint32(m.a[0])) }
