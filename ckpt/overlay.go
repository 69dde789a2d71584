package ckpt

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// overlayMax is how much changed memory of one process is held while its tree is still, in bytes. With
// more of it a copy-on-write snapshot is the better way.
const overlayMax = 96 << 20

// overlay holds copies of pages of a process, by their addresses.
type overlay struct {
	data []byte           // anonymous memory of ours
	at   map[uint64]int32 // number of the page in data, by address
	used int32            // pages of data
}

func newOverlay() (*overlay, error) {
	data, err := unix.Mmap(-1, 0, overlayMax, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("room for %d bytes of changed memory: %w", overlayMax, err)
	}
	return &overlay{data: data, at: map[uint64]int32{}}, nil
}

func (o *overlay) free() {
	if o != nil && o.data != nil {
		_ = unix.Munmap(o.data) // it cannot fail for a mapping of our own
		o.data = nil
	}
}

// put copies pages, in place of what was copied of them before. It returns those that cannot be read any
// more, which are not in the overlay then: the process may have unmapped them meanwhile.
func (o *overlay) put(mem io.ReaderAt, set pageSet) (unread pageSet, err error) {
	for _, e := range set {
		for at, end := e.Start, e.Start+e.Len; at < end; {
			slot, n := o.slots(at, end)
			if n == 0 {
				return unread, fmt.Errorf("there is more changed memory than %d MiB", overlayMax>>20)
			}
			if o.read(mem, at, slot, n) {
				at += n * pageSize
				continue
			}
			for range n {
				if !o.read(mem, at, slot, 1) {
					unread = unread.add(at, at+pageSize)
					delete(o.at, at)
				}
				at, slot = at+pageSize, slot+1
			}
		}
	}
	return unread, nil
}

// read copies n pages to slots that lie side by side.
func (o *overlay) read(mem io.ReaderAt, at uint64, slot int32, n uint64) bool {
	if _, err := mem.ReadAt(o.data[uint64(slot)*pageSize:][:n*pageSize], int64(at)); err != nil {
		return false
	}
	for i := range n {
		o.at[at+i*pageSize] = slot + int32(i)
	}
	return true
}

// slots returns where the pages from at on go, and how many of them, up to end, lie there side by side; 0 if
// there is no room.
func (o *overlay) slots(at, end uint64) (slot int32, n uint64) {
	if old, ok := o.at[at]; ok {
		return old, 1
	}
	slot = o.used
	for at < end && uint64(o.used) < overlayMax/pageSize {
		if _, ok := o.at[at]; ok {
			break
		}
		at += pageSize
		o.used++
	}
	return slot, uint64(o.used - slot)
}

// page returns the copy of a page, or nil.
func (o *overlay) page(at uint64) []byte {
	slot, ok := o.at[at]
	if !ok {
		return nil
	}
	return o.data[uint64(slot)*pageSize:][:pageSize]
}
