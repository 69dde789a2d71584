package ckpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
)

// A context of io_setup(2) is known to user space by its ring, which is mapped: /proc shows it as aioPath. What it was made
// for and whether requests are in flight the kernel's memory tells.

const (
	aioPath = "/[aio]"
	// aioPatience is how long a tree that stands still waits for the end of its requests, which is that of a disk.
	aioPatience = 200 * time.Millisecond
	aioPause    = 500 * time.Microsecond
)

// contexts are the AIO contexts of a process, by address.
func contexts(pid int) (map[uint64]kmem.AIO, error) {
	m, err := kmem.Open()
	if err != nil {
		return nil, fmt.Errorf("whether requests of io_submit(2) are in flight is only to be found in the kernel's memory: %w", err)
	}
	all, err := m.AIOs(pid)
	if err != nil {
		return nil, err
	}
	out := map[uint64]kmem.AIO{}
	for _, a := range all {
		out[a.Addr] = a
	}
	return out, nil
}

func aioFinding(pid int, addr uint64, what, remedy string) image.Finding {
	return image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Addr: addr, Kind: "AIO context", What: what, Remedy: remedy}
}

const destroyAIO = "let the program call io_destroy(2), or run it without native AIO"

// checkAIO says what is wrong with the contexts of a process and the mappings of their rings, requests in flight
// excepted. They are counted; fewer than none is what a look at a context at work can come to, and not 0 either. A context whose ring is not mapped at all is of no use to anybody: each call begins with a look
// into the ring.
func checkAIO(pid int, areas []area, has map[uint64]kmem.AIO) (bad []image.Finding, inFlight int) {
	for i := range areas {
		a := &areas[i]
		if a.kind != image.VMAAIO {
			continue
		}
		ctx, ok := has[a.Start]
		switch {
		case !ok:
			bad = append(bad, aioFinding(pid, a.Start, "it maps the ring of a context of another process, or a part of one, which nobody can map again", "let the program unmap it"))
		case image.AIORoom(a.End-a.Start) != ctx.NREvents:
			bad = append(bad, aioFinding(pid, a.Start, fmt.Sprintf("its ring has %d events, and %d bytes of it are mapped", ctx.NREvents, a.End-a.Start), destroyAIO))
		}
	}
	for _, ctx := range has {
		inFlight += max(ctx.InFlight, -ctx.InFlight)
	}
	return bad, inFlight
}

func hasAIO(areas []area) bool {
	return slices.ContainsFunc(areas, func(a area) bool { return a.kind == image.VMAAIO })
}

// lookAtAIO finds contexts that cannot be kept. Requests of a program at work end soon; what it finds in flight without
// any that ends, as one that polls a file, it refuses.
func (s *survey) lookAtAIO(l *looked) {
	if !hasAIO(l.areas) {
		return
	}
	var first map[uint64]kmem.AIO
	for end := time.Now().Add(aioPatience); ; time.Sleep(aioPause) {
		has, err := contexts(l.pid)
		if err != nil {
			s.findings = append(s.findings, aioFinding(l.pid, 0, err.Error(), destroyAIO))
			return
		}
		bad, n := checkAIO(l.pid, l.areas, has)
		if n == 0 || len(bad) > 0 || first != nil && !sameAIO(first, has) {
			s.findings = append(s.findings, bad...)
			return
		}
		if first = has; time.Now().After(end) {
			s.findings = append(s.findings, inFlightAIO(l.pid, n))
			return
		}
	}
}

func sameAIO(a, b map[uint64]kmem.AIO) bool {
	for addr, ctx := range a {
		if b[addr] != ctx {
			return false
		}
	}
	return len(a) == len(b)
}

func inFlightAIO(pid, n int) image.Finding {
	return aioFinding(pid, 0, fmt.Sprintf("%d request(s) of io_submit(2) are in flight and did not end within %v", n, aioPatience), "try again; what polls a file has to be cancelled first (io_cancel(2))")
}

// quietAIO waits until the requests of a tree that stands still have ended. It comes before anything is read: they write
// to memory, to files and to eventfds.
func quietAIO(procs []*proc, timeout time.Duration) error {
	end := time.Now().Add(min(aioPatience, timeout))
	for _, p := range procs {
		if p.zombie() || p.looked == nil || !hasAIO(p.looked.areas) {
			continue
		}
		for {
			has, err := contexts(p.pid)
			if err != nil {
				return fmt.Errorf("pid %d: %w", p.pid, err)
			}
			_, n := checkAIO(p.pid, nil, has)
			if n == 0 {
				break
			}
			if time.Now().After(end) {
				return image.Refusals([]image.Finding{inFlightAIO(p.pid, n)})
			}
			time.Sleep(aioPause)
		}
	}
	return nil
}

// readAIO reads the contexts of a frozen process. Their rings are what user space sees of them, so they are read here and
// not in a snapshot.
func (p *proc) readAIO() error {
	if !hasAIO(p.mem.areas) {
		return nil
	}
	has, err := contexts(p.pid)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	bad, n := checkAIO(p.pid, p.mem.areas, has)
	if err := image.Refusals(bad); err != nil {
		return err
	}
	if n != 0 { // of a context that the look has not seen yet, or quietAIO would have waited
		return fmt.Errorf("pid %d: %d request(s) of io_submit(2) are in flight: %w", p.pid, n, errRaced)
	}
	p.aio = map[uint64]*image.AIO{}
	for i := range p.mem.areas {
		addr := p.mem.areas[i].Start
		ctx, ok := has[addr]
		if !ok || p.mem.areas[i].kind != image.VMAAIO {
			continue
		}
		a, err := p.readRing(addr, &ctx)
		if err != nil {
			return fmt.Errorf("pid %d: the ring of its AIO context at %#x: %w", p.pid, addr, err)
		}
		p.aio[addr] = a
	}
	return nil
}

// readRing reads the part of a ring that matters.
func (p *proc) readRing(addr uint64, ctx *kmem.AIO) (*image.AIO, error) {
	const magic = 0xa10a10a1 // AIO_RING_MAGIC
	b := make([]byte, image.AIORingHead+uint64(ctx.NREvents)*image.AIOEventSize)
	if _, err := p.remote.Mem().ReadAt(b, int64(addr)); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	a := &image.AIO{MaxReqs: ctx.MaxReqs, Head: le.Uint32(b[8:]), Tail: le.Uint32(b[12:])}
	room := ctx.NREvents
	if le.Uint32(b[16:]) != magic || le.Uint32(b[4:]) != room || a.Head >= room || a.Tail >= room {
		return nil, errors.New("it is not as the kernel made it: the program has written to it")
	}
	for i := range a.Unread(room) {
		at := image.AIORingHead + uint64((a.Head+i)%room)*image.AIOEventSize
		a.Events = append(a.Events, b[at:at+image.AIOEventSize]...)
	}
	return a, nil
}
