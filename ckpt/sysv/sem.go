package sysv

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of semctl(2), from linux/sem.h.
const (
	SemGetPID    = 11
	semGetAll    = 13
	SemSetVal    = 16
	MaxSems      = 32000 // SEMMSL
	MaxSemaphore = 32767 // SEMVMX
)

// Values reads the values of a set of n semaphores.
func Values(id int32, n int) ([]uint16, error) {
	if n < 1 || n > 1<<16 {
		return nil, fmt.Errorf("semaphore set %d: %d semaphores", id, n)
	}
	b := make([]uint16, n)
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, semGetAll, uintptr(unsafe.Pointer(&b[0])), 0, 0); errno != 0 {
		return nil, fmt.Errorf("semctl of id %d, GETALL: %w", id, errno)
	}
	return b, nil
}

// LastPIDs reads which process changed each semaphore of a set last; 0: none, or one of another pid namespace.
func LastPIDs(id int32, n int) ([]int32, error) {
	out := make([]int32, n)
	for i := range out {
		pid, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), uintptr(i), SemGetPID, 0, 0, 0)
		if errno != 0 {
			return nil, fmt.Errorf("semctl of id %d, GETPID of semaphore %d: %w", id, i, errno)
		}
		out[i] = int32(pid)
	}
	return out, nil
}
