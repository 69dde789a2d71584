package restore

import (
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

const (
	madvGuardInstall = 102 // MADV_GUARD_INSTALL of asm-generic/mman-common.h (Linux 6.13)
	madvGuardRemove  = 103
)

// guard installs the guard pages of an address space, and then locks what was locked: no guard
// page can be installed in locked memory, but memory with guard pages can be locked. There may
// be any number of them, so each call is added by itself.
func (f *feeder) guard(mm *image.MM) error {
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		for _, g := range v.Guards {
			b, err := f.batch()
			if err != nil {
				return err
			}
			b.Call(unix.SYS_MADVISE, g.Start, g.Len, madvGuardInstall).
				Label(fmt.Sprintf("install guard pages at %#x-%#x", g.Start, g.Start+g.Len))
		}
		if !slices.Contains(v.VMFlags, "lo") {
			continue
		}
		if err := f.lock(v); err != nil {
			return err
		}
	}
	return f.flush()
}

// lock locks a VMA piece by piece, as bringing in pages ends with ENOMEM at the first guard page.
func (f *feeder) lock(v *image.VMA) error {
	start := v.Start
	for _, g := range v.Guards {
		if err := f.lockPiece(v, start, g.Start, false); err != nil {
			return err
		}
		start = g.Start + g.Len
		if err := f.lockPiece(v, g.Start, start, true); err != nil {
			return err
		}
	}
	return f.lockPiece(v, start, v.End, false)
}

func (f *feeder) lockPiece(v *image.VMA, start, end uint64, guard bool) error {
	if start == end {
		return nil
	}
	b, err := f.batch()
	if err != nil {
		return err
	}
	flags := uint64(0)
	if slices.Contains(v.VMFlags, "lf") {
		flags = unix.MLOCK_ONFAULT
	}
	c := b.Call(unix.SYS_MLOCK2, start, end-start, flags).Label(fmt.Sprintf("lock %#x-%#x", start, end))
	if guard || v.Prot&unix.PROT_READ == 0 {
		c.Ignore() // it is locked, and ENOMEM says that its pages cannot be brought in
	}
	return nil
}
