package kind

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	filterSize = unix.SizeofSockFilter
	maxFilter  = 4096 // BPF_MAXINSNS of linux/bpf_common.h
)

// socketFilter returns the classic BPF program of SO_ATTACH_FILTER, struct sock_filter one after the
// other, or nil if there is none.
func socketFilter(fd int) ([]byte, error) {
	n := uint32(0) // in instructions
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER, 0, uintptr(unsafe.Pointer(&n)), 0)
	switch {
	case errno == unix.EACCES:
		return nil, errors.New("an eBPF filter is attached to it, which nobody can read")
	case errno != 0:
		return nil, fmt.Errorf("SO_GET_FILTER: %w", errno)
	case n == 0:
		return nil, nil
	}
	b := make([]byte, n*filterSize)
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER,
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		return nil, fmt.Errorf("SO_GET_FILTER: %w", errno)
	}
	return b, nil
}

// attachFilter attaches what socketFilter has returned.
func attachFilter(fd int, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p := unix.SockFprog{Len: uint16(len(b) / filterSize), Filter: (*unix.SockFilter)(unsafe.Pointer(&b[0]))}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, uintptr(unsafe.Pointer(&p)), unsafe.Sizeof(p), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", errno)
	}
	return nil
}
