package ptrace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"
)

// scratch is the memory in the process that batches work in.
type scratch struct {
	addr uint64 // 0: none
	size int    // of the whole mapping
	data uint64 // where batches put their data
	room int    // bytes there
	code uint64 // of batchCode
	exec bool   // batchCode may run; else the calls of a batch go one by one
}

// In a target: a header with scratchMagic, the data, and a last page with the code.
const (
	scratchSize = 64 * pageSize
	scratchHead = 64
	stubHead    = 256 // in a stub: the code, then the data
)

// mapScratch maps the scratch memory in the target. The mapping is shared, so that it
// never merges with a neighbour, and its address goes into the frame first, so that
// whoever comes after our death knows whose it is.
func (r *Remote) mapScratch() error {
	addr, err := findHole(r.pid, r.maps, scratchSize)
	if err != nil {
		return err
	}
	if err := r.setNote(addr); err != nil {
		return err
	}
	if err := r.mmapUnlimited(addr); errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("pid %d: map %d bytes of scratch memory: %w: mlockall(MCL_FUTURE) locks it, and the limit of locked memory does not allow that (prlimit --pid %d --memlock=...)",
			r.pid, scratchSize, err, r.pid)
	} else if err != nil {
		return fmt.Errorf("pid %d: map %d bytes of scratch memory: %w (limits: ulimit -v, vm.max_map_count)", r.pid, scratchSize, err)
	}
	r.scratch = scratch{addr: addr, size: scratchSize, data: addr + scratchHead,
		room: scratchSize - pageSize - scratchHead, code: addr + scratchSize - pageSize + uint64(len(batchMagic))}
	if err := r.write(r.th.t, scratchMagic, addr); err != nil {
		return err
	}
	if err := r.writeCode(); err != nil {
		return err
	}
	_, err = r.Syscall(unix.SYS_MPROTECT, addr+scratchSize-pageSize, pageSize, unix.PROT_READ|unix.PROT_EXEC)
	r.scratch.exec = err == nil
	if err != nil && !isErrno(err) {
		return err
	}
	return nil // refused (PR_SET_MDWE, SELinux): batches go call by call
}

// mmapUnlimited maps it, and lifts the target's limit of locked memory for the moment if that is in the way.
func (r *Remote) mmapUnlimited(addr uint64) error {
	mmap := func() error {
		_, err := r.Syscall(unix.SYS_MMAP, addr, scratchSize, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uint64(0), 0)
		return err
	}
	err := mmap()
	if !errors.Is(err, unix.EAGAIN) {
		return err
	}
	old, ok := r.liftLimit(unix.RLIMIT_MEMLOCK)
	if !ok {
		return err
	}
	err = mmap()
	if e := unix.Prlimit(r.pid, unix.RLIMIT_MEMLOCK, &old, nil); e != nil {
		err = errors.Join(err, fmt.Errorf("pid %d: set RLIMIT_MEMLOCK back to %d: %w", r.pid, old.Cur, e))
	}
	return err
}

// writeCode writes batchCode, with its mark before it.
func (r *Remote) writeCode() error {
	b := append(append([]byte(nil), batchMagic...), batchCode...)
	return r.write(r.th.t, b, r.scratch.code-uint64(len(batchMagic)))
}

// stubScratch lays out scratch memory that the caller gave.
func stubScratch(addr uint64, length int) scratch {
	return scratch{addr: addr, size: length, data: addr + stubHead, room: length - stubHead, code: addr + uint64(len(batchMagic))}
}

// Scratch returns where the scratch mapping is while there is one (0, 0: none): it is
// ours, not the target's. In a Snapshot it is there too.
func (r *Remote) Scratch() (start, end uint64) {
	return r.scratch.addr, r.scratch.addr + uint64(r.scratch.size)
}

// The part of the address space in which a hole is looked for.
const (
	lowest  = 1 << 20
	highest = 0x7fff_0000_0000
)

// findHole returns a random page-aligned address in the middle of the largest gap of the
// address space: random, so that a later mapping of the target's own is never mistaken for ours.
func findHole(pid int, maps []vma, size int) (uint64, error) {
	var from, length uint64
	prev := uint64(lowest)
	for _, v := range append(slices.Clip(maps), vma{start: highest, end: highest}) {
		if end := min(v.start, highest); end > prev && end-prev > length {
			from, length = prev, end-prev
		}
		prev = max(prev, v.end)
	}
	if length < 4*uint64(size) {
		return 0, fmt.Errorf("pid %d: no room in its address space for %d bytes of scratch memory", pid, size)
	}
	pages := (length/2 - uint64(size)) / pageSize
	return (from+length/4)&^(pageSize-1) + rand.Uint64N(pages)*pageSize, nil
}

// errNoScratch is returned by NewBatch of a stub without scratch memory.
var errNoScratch = errors.New("no scratch memory for a batch")
