package restore

import (
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// span is a range of addresses [Start, End).
type span struct{ Start, End uint64 }

// The part of the address space where a stub may be linked. Below is what programs expect to
// fault; above the kernel places stack, vdso and mmap area of a new process at random.
const (
	holeMin = 1 << 20
	holeMax = 0x5000_0000_0000
	// holeGuard is kept free above the hole, so that it is not in the way of the stack guard
	// gap (1 MiB by default) of a VMA that grows down.
	holeGuard = 2 << 20
)

// pickHole returns the lowest address at which size bytes are free in every address space of
// the image: the stubs live there while the memory around them is built.
func pickHole(mms []image.MM, size uint64) (uint64, error) {
	var used []span
	for i := range mms {
		for j := range mms[i].VMAs {
			v := &mms[i].VMAs[j]
			used = append(used, span{v.Start, v.End})
		}
	}
	at, ok := freeRange(used, holeMin, holeMax, size+holeGuard)
	if !ok {
		return 0, &HostError{What: fmt.Sprintf("there is no range of %d KiB below %#x that is free in all %d address spaces of the image", (size+holeGuard)>>10, uint64(holeMax), len(mms)),
			Remedy: "restore needs one to work from; checkpoint the processes one by one"}
	}
	return at, nil
}

// freeRange returns the lowest address in [lo, hi) with size bytes outside of all used spans.
// It sorts used.
func freeRange(used []span, lo, hi, size uint64) (uint64, bool) {
	slices.SortFunc(used, func(a, b span) int {
		if a.Start < b.Start {
			return -1
		} else if a.Start > b.Start {
			return 1
		}
		return 0
	})
	at := lo
	for _, s := range used {
		if s.Start >= at && s.Start-at >= size {
			break
		}
		at = max(at, s.End)
	}
	if at >= hi || hi-at < size {
		return 0, false
	}
	return at, true
}
