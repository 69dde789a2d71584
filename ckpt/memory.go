package ckpt

import (
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// pageReader gives bytes of memory by address or offset, as os.File and held do.
type pageReader interface {
	ReadAt(p []byte, off int64) (int, error)
}

// memory is the address space of a process while and after it is frozen.
type memory struct {
	maps  []procfs.Mapping // in the freeze, before anything of ours is mapped
	areas []area
	held  map[uint64]*held // frozen copies, by start of the area
	snap  *ptrace.Snapshot // nil: everything is in held, or the process stays frozen
	live  *os.File         // /proc/PID/mem of a process that stays frozen

	tracked    map[uint64]*trackedArea // mappings whose writes are tracked, by start
	copiedOnly bool                    // no snapshot was needed: what had changed was copied
	pid        int                     // whose pagemap and smaps tell the rest: the snapshot, or the process
}

// copied is how many bytes were copied while the process was frozen.
func (m *memory) copied() (n int64) {
	for _, h := range m.held {
		for _, e := range h.extents {
			n += int64(e.Len)
		}
	}
	return n
}

// attachments are the mappings of shared memory of System V, start and length: they are no business of a
// snapshot, and count (shmid_ds.shm_nattch).
func (m *memory) attachments() (all [][2]uint64) {
	for i := range m.areas {
		if a := &m.areas[i]; a.sysv() {
			all = append(all, [2]uint64{a.Start, a.End - a.Start})
		}
	}
	return all
}

// held is a copy of some pages, made while the process was frozen.
type held struct {
	extents []image.Extent
	guards  []image.Extent // guard regions, which are no pages
	data    []byte         // anonymous memory of ours, the extents one after the other
}

// newHeld makes room for a copy of the extents. It is unmapped by free.
func newHeld(es []image.Extent) (*held, error) {
	h := &held{extents: es}
	n := extentsLen(es)
	if n == 0 {
		return h, nil
	}
	var err error
	h.data, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("room for %d bytes of shared memory: %w", n, err)
	}
	return h, nil
}

// fill copies the extents from r.
func (h *held) fill(r pageReader) error {
	at := h.data
	for _, e := range h.extents {
		if _, err := r.ReadAt(at[:e.Len], int64(e.Start)); err != nil {
			return fmt.Errorf("read %d bytes at %#x: %w", e.Len, e.Start, err)
		}
		at = at[e.Len:]
	}
	return nil
}

// ReadAt reads copied bytes; off is the address or offset they had.
func (h *held) ReadAt(p []byte, off int64) (int, error) {
	pos := uint64(0)
	for _, e := range h.extents {
		if uint64(off) >= e.Start && uint64(off)+uint64(len(p)) <= e.Start+e.Len {
			return copy(p, h.data[pos+uint64(off)-e.Start:]), nil
		}
		pos += e.Len
	}
	return 0, fmt.Errorf("no frozen copy of %d bytes at %#x", len(p), off)
}

func (h *held) free() {
	if h.data != nil {
		_ = unix.Munmap(h.data) // it cannot fail for a mapping of our own
		h.data = nil
	}
}

// free gives back everything; the snapshot is killed by its owner.
func (m *memory) free() {
	for _, h := range m.held {
		h.free()
	}
	m.held = nil
}

// reader gives the pages of an area.
func (m *memory) reader(a *area) pageReader {
	if h := m.held[a.Start]; h != nil {
		return h
	}
	if t := m.tracked[a.Start]; t != nil && t.reader != nil {
		return t.reader
	}
	if m.snap != nil {
		return m.snap.Mem()
	}
	return m.live
}

// known is what the look found out about a mapping that is still just the same, or nil.
func (l *looked) known(m *procfs.Mapping) *area {
	if l == nil {
		return nil
	}
	i := sort.Search(len(l.areas), func(i int) bool { return l.areas[i].Start >= m.Start })
	if i == len(l.areas) || !sameMapping(&l.areas[i].Mapping, m) {
		return nil
	}
	return &l.areas[i]
}

// sameMapping compares what /proc/PID/maps tells.
func sameMapping(a, b *procfs.Mapping) bool { return *a == *b }

// locksKnown reports whether the flags of mlock(2) are what the look found: every mapping is
// as it was, and so is the number of locked bytes.
func (p *proc) locksKnown(locked uint64) bool {
	if p.looked == nil || p.looked.status.VmLck != locked {
		return false
	}
	for i := range p.mem.areas {
		if p.looked.known(&p.mem.areas[i].Mapping) == nil {
			return false
		}
	}
	return true
}

// copyFrozen copies what a fork would not snapshot: it runs in the freeze, before the
// snapshot is made. With all it copies everything.
func (p *proc) copyFrozen(all bool) error {
	var sc *scanner
	defer func() { sc.close() }()
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if !all && !a.HasFlag("dc") && !a.sysv() && (!a.hasPages() || !a.frozenOnly()) {
			continue
		}
		if sc == nil {
			var err error
			if sc, err = newScanner(p.pid); err != nil {
				return err
			}
		}
		es, guards, err := p.pagesOf(sc, a)
		if err == nil {
			err = p.hold(a, es, guards)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hold copies pages of an area of the frozen process.
func (p *proc) hold(a *area, pages, guards []image.Extent) error {
	h, err := newHeld(pages)
	if err != nil {
		return err
	}
	h.guards = guards
	p.mem.held[a.Start] = h
	if err := h.fill(p.remote.Mem()); err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	return nil
}

// readAreas finds the mappings of the frozen process. What the look knows of an unchanged
// mapping is taken from there; smaps is too slow for the freeze unless slow says otherwise.
func (p *proc) readAreas(slow bool) error {
	var maps []procfs.Mapping
	var err error
	if text := p.remote.Maps(); text != nil {
		maps, err = procfs.ParseMaps(text)
	} else {
		maps, err = readMaps(p.pid)
	}
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	start, end := p.remote.Scratch() // ours, not the target's
	maps = slices.DeleteFunc(maps, func(m procfs.Mapping) bool { return m.Start >= start && m.End <= end })
	p.mem = memory{maps: maps, held: map[uint64]*held{}, pid: p.pid}
	if slow {
		return p.readSmaps(p.pid)
	}
	for i := range maps {
		m := &maps[i]
		if m.Path == "[vsyscall]" {
			continue
		}
		if a := p.looked.known(m); a != nil {
			p.mem.areas = append(p.mem.areas, *a)
			continue
		}
		a := area{Smap: procfs.Smap{Mapping: *m}, kind: classify(m)}
		p.mem.areas = append(p.mem.areas, a)
	}
	return nil
}

// readSmaps takes the areas from the smaps of pid, the process itself or its snapshot, for
// the mappings that were there in the freeze.
func (p *proc) readSmaps(pid int) error {
	smaps, err := readSmaps(pid)
	if err != nil {
		return err
	}
	here := make(map[uint64]*procfs.Mapping, len(p.mem.maps))
	for i := range p.mem.maps {
		here[p.mem.maps[i].Start] = &p.mem.maps[i]
	}
	got, bad := areas(pid, slices.DeleteFunc(smaps, func(s procfs.Smap) bool {
		m := here[s.Start]
		return m == nil || !sameMapping(m, &s.Mapping)
	}))
	for i := range bad {
		bad[i].PID = int32(p.pid)
	}
	if err := image.Refusals(bad); err != nil {
		return err
	}
	p.mem.areas = got
	return nil
}

// refine replaces what readAreas guessed of the areas by what the snapshot's smaps tell. A
// fork copies mappings one to one with their flags, except that DONTFORK ones are missing
// and mlock does not pass on: those flags are the look's.
func (p *proc) refine() error {
	before := p.mem.areas
	if err := p.readSmaps(p.mem.pid); err != nil {
		return err
	}
	got := p.mem.areas
	var out []area
	for i := range before {
		old := &before[i]
		j := sort.Search(len(got), func(j int) bool { return got[j].Start >= old.Start })
		if j == len(got) || got[j].Start != old.Start {
			if p.mem.held[old.Start] == nil {
				return fmt.Errorf("pid %d: the mapping at %#x is not in its snapshot: %w", p.pid, old.Start, errRaced)
			}
			out = append(out, *old)
			continue
		}
		a := got[j]
		if a.frozenOnly() && a.hasPages() && p.mem.held[a.Start] == nil {
			return fmt.Errorf("pid %d: the mapping at %#x got other flags: %w", p.pid, a.Start, errRaced)
		}
		a.keepLock(old)
		out = append(out, a)
	}
	p.mem.areas = out
	return nil
}

// keepLock takes over the flags of mlock(2), which a fork does not pass on.
func (a *area) keepLock(old *area) {
	for _, f := range []string{"lo", "lf"} {
		if old.HasFlag(f) && !a.HasFlag(f) {
			a.Flags = append(a.Flags, f)
		}
	}
}
