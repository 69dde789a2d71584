package kind

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// ringState is what the kernel's struct io_ring_ctx says.
type ringState struct {
	m        *kmem.Memory
	ctx      uint64
	rings    uint64 // struct io_rings
	rec      uringRec
	busy     int // requests in flight
	overflow bool
	wrong    []string // what cannot be kept
}

// pry reads members until one fails.
type pry struct {
	m   *kmem.Memory
	err error
}

func (p *pry) get(addr uint64, member string) uint64 {
	if p.err != nil {
		return 0
	}
	var v uint64
	v, p.err = p.m.Get(addr, member)
	return v
}

// maybe is get, and 0 if this kernel has no such member.
func (p *pry) maybe(addr uint64, member string) uint64 {
	if !p.m.Has(member) {
		return 0
	}
	return p.get(addr, member)
}

// inFlight is how many requests of a ring are in flight.
func inFlight(m *kmem.Memory, ctx uint64) (int, error) {
	p := pry{m: m}
	all, free := p.get(ctx, "io_ring_ctx.nr_req_allocated"), p.get(ctx, "io_ring_ctx.submit_state.free_list.next")
	if p.err != nil {
		return 0, p.err
	}
	n, err := m.Chain(free)
	return int(all) - n, err
}

// readRing reads everything about a ring but its entries.
func readRing(f *Found, s *Scene) (*ringState, error) {
	m, err := kmem.Open()
	if err != nil {
		return nil, err
	}
	file, err := m.File(f.FD)
	if err != nil {
		return nil, err
	}
	r, p := &ringState{m: m}, &pry{m: m}
	r.ctx = p.get(file, "file.private_data")
	if p.err != nil {
		return nil, p.err
	}
	if r.busy, err = inFlight(m, r.ctx); err != nil {
		return nil, err
	}
	r.readRings(p)
	if p.err == nil {
		p.err = r.readOwner(f, p)
	}
	r.refuse(p)
	if p.err == nil {
		p.err = r.readRegistered(f, s, p)
	}
	return r, p.err
}

// readRings reads sizes and positions.
func (r *ringState) readRings(p *pry) {
	c := &r.rec
	num := func(member string) uint32 { return uint32(p.get(r.ctx, "io_ring_ctx."+member)) }
	c.Flags, c.SQEntries, c.CQEntries = num("flags"), num("sq_entries"), num("cq_entries")
	r.rings = p.get(r.ctx, "io_ring_ctx.rings")
	ring := func(member string) uint32 { return uint32(p.get(r.rings, "io_rings."+member)) }
	c.SQHead, c.SQTail = num("cached_sq_head"), ring("sq.tail")
	c.CQTail, c.CQHead = num("cached_cq_tail"), ring("cq.head")
	c.Dropped, c.Overflow, c.CQFlags = ring("sq_dropped"), ring("cq_overflow"), ring("cq_flags")
	c.Clock = uint32(p.maybe(r.ctx, "io_ring_ctx.clockid"))
	if p.err != nil {
		return
	}
	off, err := p.m.Offset("io_ring_ctx.cq_overflow_list")
	if err != nil {
		p.err = err
		return
	}
	first, err := p.m.Word(r.ctx + off)
	p.err = err
	r.overflow = first != r.ctx+off
}

// readOwner finds the thread that is to make it.
func (r *ringState) readOwner(f *Found, p *pry) (err error) {
	c := &r.rec
	c.PID = f.Slots[0].PID
	c.Thread = c.PID
	sub := p.get(r.ctx, "io_ring_ctx.submitter_task")
	tid := 0
	if sub != 0 && p.err == nil {
		if tid, err = p.m.PID(sub); err != nil {
			return err
		}
	}
	if c.Flags&ringSQPoll != 0 {
		data := p.get(r.ctx, "io_ring_ctx.sq_data")
		c.Idle = uint32(p.get(r.ctx, "io_ring_ctx.sq_thread_idle") * 1000 / jiffies())
		c.CPU = uint32(p.get(data, "io_sq_data.sq_cpu"))
		if p.get(data, "io_sq_data.refs.refs.counter") != 1 {
			r.wrong = append(r.wrong, "it shares its kernel thread with another one (IORING_SETUP_ATTACH_WQ with SQPOLL)")
		}
		t := sqThread(f)
		if t == 0 {
			r.wrong = append(r.wrong, "its kernel thread (IORING_SETUP_SQPOLL) has ended")
			return nil
		}
		if !plainRoot(t) {
			r.wrong = append(r.wrong, "its kernel thread (IORING_SETUP_SQPOLL) does not run as root with all capabilities, and a restore can make no other")
		}
		if tid == 0 {
			tid = t
		}
	}
	if tid == 0 {
		return p.err
	}
	if c.PID, err = processOf(tid); err != nil {
		return err
	}
	if c.Thread = int32(tid); sub == 0 {
		c.Thread = c.PID
	}
	if slotIn(f, c.PID) < 0 {
		r.wrong = append(r.wrong, fmt.Sprintf("pid %d, whose thread has to make it, has closed it or is outside the tree", c.PID))
	}
	return p.err
}

// jiffies is how many jiffies a second has: the kernel counts the idle time in them and tells nobody how long they are. So
// a ring of ours with a second of idle time is asked.
var jiffies = sync.OnceValue(func() uint64 {
	const usual = 1000
	p := ringParams{Flags: ringSQPoll | ringDisabled, Idle: 1000}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return usual
	}
	defer unix.Close(int(fd))
	m, err := kmem.Open()
	if err != nil {
		return usual
	}
	file, err := m.File(int(fd))
	if err != nil {
		return usual
	}
	k := pry{m: m}
	n := k.get(k.get(file, "file.private_data"), "io_ring_ctx.sq_thread_idle")
	if k.err != nil || n == 0 {
		return usual
	}
	return n
})

// slotIn is a number under which a process has the file, or -1.
func slotIn(f *Found, pid int32) int32 {
	for _, at := range f.Slots {
		if at.PID == pid {
			return at.Num
		}
	}
	return -1
}

// plainRoot reports whether a thread has the credentials that we have, and that are root's.
func plainRoot(tid int) bool {
	its, err := quickread.File(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	own, err := quickread.File("/proc/self/status")
	if err != nil {
		return false
	}
	a, aerr := procfs.ParseStatus(its)
	b, berr := procfs.ParseStatus(own)
	return aerr == nil && berr == nil && a.Uid == [4]uint32{} && a.Gid == [4]uint32{} && a.CapEff == b.CapEff && a.CapPrm == b.CapPrm
}

// refuse finds what this version does not keep.
func (r *ringState) refuse(p *pry) {
	no := func(on bool, what string) {
		if on && p.err == nil {
			r.wrong = append(r.wrong, what)
		}
	}
	c := &r.rec
	no(c.Flags&(ringNoMmap|ringFDOnly) != 0, "its memory is the program's own (IORING_SETUP_NO_MMAP), and nobody tells where it is")
	no(c.Flags&^ringFlags != 0, fmt.Sprintf("it was made with flags that this version does not know (%#x)", c.Flags))
	no(p.get(r.ctx, "io_ring_ctx.restricted") != 0, "it is restricted (IORING_REGISTER_RESTRICTIONS), which is not kept")
	no(c.Flags&ringDisabled != 0 && p.maybe(r.ctx, "io_ring_ctx.restrictions.registered") != 0, "restrictions are registered with it (IORING_REGISTER_RESTRICTIONS), which are not kept")
	no(p.maybe(r.ctx, "io_ring_ctx.iowq_limits_set") != 0, "the number of its workers is limited (IORING_REGISTER_IOWQ_MAX_WORKERS), which is not kept")
	for member, what := range map[string]string{
		"personalities.xa_head": "personalities are registered with it (IORING_REGISTER_PERSONALITY), which are not kept",
		"io_bl_xa.xa_head":      "buffers are provided to it (IORING_REGISTER_PBUF_RING, IORING_OP_PROVIDE_BUFFERS), which are not kept",
		"zcrx_ctxs.xa_head":     "it receives without copying from a network card (IORING_REGISTER_ZCRX_IFQ)",
		"param_region.pages":    "a memory region is registered with it (IORING_REGISTER_MEM_REGION), which is not kept",
	} {
		no(p.maybe(r.ctx, "io_ring_ctx."+member) != 0, what)
	}
	// Linux 6.9 to 6.12 has napi_enabled; later ones have a mode, in which 0 is one that polls.
	polls := p.maybe(r.ctx, "io_ring_ctx.napi_enabled") != 0 ||
		r.m.Has("io_ring_ctx.napi_track_mode") && p.get(r.ctx, "io_ring_ctx.napi_track_mode") != napiInactive
	no(polls, "it polls network cards (IORING_REGISTER_NAPI), which is not kept")
}

const napiInactive = 255 // IO_URING_NAPI_TRACKING_INACTIVE

// content is the blob of a ring: its entries, those of completions, and the indices.
func (r *ringState) content() ([]byte, error) {
	p := &pry{m: r.m}
	sqes, cqes, array := r.rec.sizes()
	b := make([]byte, sqes+cqes+array)
	off, err := r.m.Offset("io_rings.cqes")
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		at uint64
		b  []byte
	}{{p.get(r.ctx, "io_ring_ctx.sq_sqes"), b[:sqes]}, {r.rings + off, b[sqes:][:cqes]}, {p.get(r.ctx, "io_ring_ctx.sq_array"), b[sqes+cqes:]}} {
		if p.err != nil {
			return nil, p.err
		}
		if err := r.m.Read(part.at, part.b); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func mapsOf(pid int) ([]procfs.Mapping, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	return procfs.ParseMaps(b)
}

// frameAt is the page frame at an address of a process, from /proc/PID/pagemap.
func frameAt(pid string, addr uint64) (uint64, error) {
	f, err := os.Open("/proc/" + pid + "/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(addr/pageSize*8)); err != nil {
		return 0, fmt.Errorf("pagemap of %s at %s: %w", pid, strconv.FormatUint(addr, 16), err)
	}
	const present, frame = 1 << 63, 1<<55 - 1
	v := binary.LittleEndian.Uint64(b[:])
	if v&present == 0 || v&frame == 0 {
		return 0, fmt.Errorf("pagemap of %s tells no page frame at %#x", pid, addr)
	}
	return v & frame, nil
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
