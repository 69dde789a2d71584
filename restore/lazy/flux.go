package lazy

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// The events of several threads need not come in the order in which things happened: the kernel queues one when
// the call has done its work and has let go of the address space. Where one thread unmaps memory or moves it
// away, and another moves some to the very place, since the kernel has found it free, the later may be
// told first. The program knows nothing of that; what both of them had must not get mixed up.
//
// Whoever unmaps or moves what was moved knows its new address from a call that returned, so after its
// event was read. So as long as calls go on that began before (the kernel then refuses to put pages, with
// EAGAIN), an event about a place to which something has just been moved may be about what was there
// before. Whether it is shows the address space itself: if the place is mapped, what was moved there has not gone.
type flux struct {
	born      []span // where something was moved to, as long as such calls go on
	displaced []run  // what had been there
}

// moved notes that the program has moved memory (mremap(2)). Called with mu held, as all of these.
func (sp *space) moved(from, to, length uint64) {
	f := &sp.flux
	var moving []run
	if touches(f.born, from, from+length) && sp.mapped()(from) {
		moving = within(f.displaced, from, from+length)
		f.displaced = cut(f.displaced, from, from+length)
	} else {
		moving = sp.m.take(from, from+length)
	}
	f.displaced = append(f.displaced, sp.m.take(to, to+length)...)
	for i := range moving {
		moving[i].addr += to - from
	}
	sp.m.put(moving)
	f.born = append(f.born, span{to, to + length})
}

// unmapped notes that the program has unmapped memory, by whatever call.
func (sp *space) unmapped(start, end uint64) {
	f := &sp.flux
	if !touches(f.born, start, end) {
		sp.m.drop(start, end)
		return
	}
	mapped := sp.mapped()
	for at := start; at < end; at += pageSize {
		if touches(f.born, at, at+pageSize) && mapped(at) {
			sp.m.lose(within(f.displaced, at, at+pageSize))
			f.displaced = cut(f.displaced, at, at+pageSize)
		} else {
			sp.m.drop(at, at+pageSize)
		}
	}
}

// settle forgets what was moved when no call goes on that could concern what was there before.
func (sp *space) settle() {
	if sp.flux.born == nil {
		return
	}
	if _, err := uffd.FD(sp.fd).Zero(0, pageSize); !errors.Is(err, unix.EAGAIN) { // nothing is mapped there, and the kernel looks for calls first
		sp.m.lose(sp.flux.displaced)
		sp.flux = flux{}
	}
}

// touches reports whether one of some spans overlaps a part of memory.
func touches(all []span, start, end uint64) bool {
	for _, s := range all {
		if s.Start < end && start < s.End {
			return true
		}
	}
	return false
}

// mapped looks at the address space, and returns what tells whether something is mapped at an address. Of a process that is not
// known it is taken to be.
func (sp *space) mapped() func(addr uint64) bool {
	always := func(uint64) bool { return true }
	pid := sp.pid.Load()
	if pid == 0 {
		return always
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return always
	}
	maps, err := procfs.ParseMaps(b)
	if err != nil {
		return always
	}
	return func(addr uint64) bool {
		return slices.ContainsFunc(maps, func(m procfs.Mapping) bool { return m.Start <= addr && addr < m.End })
	}
}
