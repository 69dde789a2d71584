package task

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What Kcmp compares, see kcmp(2) and linux/kcmp.h.
const (
	KcmpFile    = 0 // open file descriptions; needs two descriptors, so not for Kcmp
	KcmpVM      = 1 // address space
	KcmpFiles   = 2 // descriptor table
	KcmpFS      = 3 // cwd, root, umask
	KcmpSighand = 4 // signal actions
	KcmpIO      = 5 // I/O context; equal too if neither has one
	KcmpSysvsem = 6 // list of SysV semaphore undo operations; equal too if neither has one
)

// Kcmp says whether two threads share a resource of the given type. It works on running
// threads and needs the right to ptrace both.
func Kcmp(a, b, typ int) (bool, error) {
	r, _, e := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(typ), 0, 0, 0)
	if e != 0 {
		return false, fmt.Errorf("kcmp of threads %d and %d (type %d): %w", a, b, typ, e)
	}
	return r == 0, nil
}
