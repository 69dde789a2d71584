package sysv

import (
	"errors"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func semop(t *testing.T, id int32, ops []SemOp) error {
	t.Helper()
	b := Encode(ops)
	_, _, errno := unix.Syscall(unix.SYS_SEMOP, uintptr(id), uintptr(unsafe.Pointer(&b[0])), uintptr(len(ops)))
	if errno != 0 {
		return errno
	}
	return nil
}

// TestUndo makes adjustments and finds them again, and nothing of a semaphore has changed by that.
func TestUndo(t *testing.T) {
	runtime.LockOSThread() // Go's threads share one list of adjustments, but be sure
	defer runtime.UnlockOSThread()
	id, _, errno := unix.Syscall(unix.SYS_SEMGET, 0, 3, IPCCreat|0o600)
	if errno != 0 {
		t.Fatal(errno)
	}
	set := int32(id)
	defer func() {
		if err := Remove("sem", set); err != nil {
			t.Error(err)
		}
	}()
	for _, value := range []uint16{0, 1, 100, 16383, 16384, 32766, 32767} {
		for _, adj := range []int{0, 1, -1, 2, -2, 5, -100, 16384, -16385, 32766, HighestAdj, -HighestAdj, LowestAdj} {
			if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, id, 1, SemSetVal, uintptr(value), 0, 0); errno != 0 { // clears adjustments
				t.Fatal(errno)
			}
			for _, ops := range Adjust(1, value, adj) {
				if err := semop(t, set, ops); err != nil {
					t.Fatalf("value %d, adjustment %d: %+v: %v", value, adj, ops, err)
				}
			}
			got, err := Search(func(k int) (bool, error) {
				err := semop(t, set, Probe(1, value, k))
				if !errors.Is(err, unix.ERANGE) && !errors.Is(err, unix.EAGAIN) {
					t.Fatalf("value %d, adjustment %d: the probe for %d: %v", value, adj, k, err)
				}
				return errors.Is(err, unix.ERANGE), nil
			})
			if err != nil || got != adj {
				t.Errorf("value %d: the adjustment is %d, found %d, %v", value, adj, got, err)
			}
			if now, err := Values(set, 3); err != nil || now[0] != 0 || now[1] != value || now[2] != 0 {
				t.Errorf("the values are %v, %v, not %d", now, err, value)
			}
			if err := semop(t, set, Touch(1, value)); err != nil {
				t.Errorf("touch at %d: %v", value, err)
			}
		}
	}
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, id, 1, SemSetVal, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}
