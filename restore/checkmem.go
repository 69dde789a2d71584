package restore

import (
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// mapType is MAP_TYPE of linux/mman.h.
const mapType = 0xf

// checkMemory asks this kernel whether it has the kinds of memory that the image holds.
func checkMemory(m *image.Manifest) error {
	var droppable, guards, fileGuards error
	asked := false
	ask := func() {
		if !asked {
			asked = true
			droppable, guards, fileGuards = tryDroppable(), tryGuard(unix.MAP_PRIVATE), tryGuard(unix.MAP_SHARED)
		}
	}
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		for k := range m.MMs[t.MM-1].VMAs {
			v := &m.MMs[t.MM-1].VMAs[k]
			isDroppable := v.Flags&mapType == unix.MAP_DROPPABLE
			if !isDroppable && len(v.Guards) == 0 {
				continue
			}
			ask()
			what, remedy, err := "is MAP_DROPPABLE", "restore it on Linux 6.11 or newer", error(nil)
			switch {
			case isDroppable && droppable != nil:
				err = droppable
			case len(v.Guards) > 0 && v.Kind == image.VMAAnon:
				what, remedy, err = "has guard regions", "restore it on Linux 6.13 or newer", guards
			case len(v.Guards) > 0:
				what, remedy, err = "of a file has guard regions", "restore it on Linux 6.15 or newer", fileGuards
			}
			if err != nil {
				return &HostError{What: fmt.Sprintf("pid %d: memory at %#x %s, which this kernel cannot make", t.PID, v.Start, what), Err: err, Remedy: remedy}
			}
		}
	}
	return nil
}

// tryDroppable makes and drops a page of such memory.
func tryDroppable() error {
	b, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_DROPPABLE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	return unix.Munmap(b)
}

// tryGuard makes a page of ours, private or shared, a guard page.
func tryGuard(sharing int) error {
	b, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, sharing|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(b) // it cannot fail for a mapping of our own
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(unsafe.Pointer(&b[0])), pageSize, madvGuardInstall); errno != 0 {
		return errno
	}
	return nil
}
