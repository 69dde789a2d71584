package restore

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// memoryTrial is something about memory that not every kernel has.
type memoryTrial struct {
	needs  func(v *image.VMA) bool
	what   string
	try    func() error // with memory of ours
	remedy string
}

var memoryTrials = [...]memoryTrial{
	{func(v *image.VMA) bool { return len(v.Guards) > 0 && v.Kind == image.VMAAnon },
		"guard pages (MADV_GUARD_INSTALL)", func() error { return tryGuard(unix.MAP_PRIVATE) }, "restore it under Linux 6.13 or newer"},
	{func(v *image.VMA) bool { return len(v.Guards) > 0 && v.Kind != image.VMAAnon },
		"guard pages (MADV_GUARD_INSTALL) in a mapped file or in shared memory", func() error { return tryGuard(unix.MAP_SHARED) }, "restore it under Linux 6.15 or newer"},
	{func(v *image.VMA) bool { return v.Flags&unix.MAP_TYPE == unix.MAP_DROPPABLE },
		"droppable memory (MAP_DROPPABLE)", tryDroppable, "restore it under Linux 6.11 or newer"},
	{func(v *image.VMA) bool { _, named := anonName(v.Name); return named },
		"memory with a name (PR_SET_VMA_ANON_NAME)", tryName, "restore it under a kernel with CONFIG_ANON_VMA_NAME"},
}

// checkMemory asks whether this kernel can make memory of the kinds that the image has, by
// trying it out here.
func checkMemory(m *image.Manifest) error {
	for i := range memoryTrials {
		if err := memoryTrials[i].check(m); err != nil {
			return err
		}
	}
	return nil
}

func (c *memoryTrial) check(m *image.Manifest) error {
	pid, v := needs(m, c.needs)
	if v == nil {
		return nil
	}
	if err := c.try(); err != nil {
		return &HostError{What: fmt.Sprintf("pid %d has %s at %#x, and this kernel makes none", pid, c.what, v.Start), Err: err, Remedy: c.remedy}
	}
	return nil
}

// needs finds the first VMA of an image of which f is true, or nil.
func needs(m *image.Manifest, f func(v *image.VMA) bool) (pid int32, v *image.VMA) {
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		vmas := m.MMs[t.MM-1].VMAs
		for k := range vmas {
			if f(&vmas[k]) {
				return t.PID, &vmas[k]
			}
		}
	}
	return 0, nil
}

// tryGuard installs a guard page in anonymous memory, which is a file of the kernel's if it is shared.
func tryGuard(typ int) error {
	b, err := unix.Mmap(-1, 0, image.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|typ)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return errors.Join(unix.Madvise(b, madvGuardInstall), unix.Munmap(b))
}

func tryName() error {
	b, err := unix.Mmap(-1, 0, image.PageSize, unix.PROT_READ, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	name := []byte("ckptfs\x00")
	_, _, errno := unix.Syscall6(unix.SYS_PRCTL, prSetVMA, prSetVMAName, uintptr(unsafe.Pointer(&b[0])), image.PageSize, uintptr(unsafe.Pointer(&name[0])), 0)
	if errno != 0 {
		return errors.Join(errno, unix.Munmap(b))
	}
	return unix.Munmap(b)
}

func tryDroppable() error {
	b, err := unix.Mmap(-1, 0, image.PageSize, unix.PROT_READ, unix.MAP_ANONYMOUS|unix.MAP_DROPPABLE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return unix.Munmap(b)
}
