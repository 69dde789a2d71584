package kind

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// A ring belongs to the process that makes it, and with IORING_SETUP_SINGLE_ISSUER to the thread. So io_uring_setup(2)
// is called there (Later), and pidfd_getfd(2) brings the descriptor here; it cannot be sent by SCM_RIGHTS.

// check finds what no ring can be.
func (r *uringRec) check() error {
	bad := func(format string, a ...any) error { return fmt.Errorf("io_uring: "+format, a...) }
	power := func(n, most uint32) bool { return n > 0 && n <= most && n&(n-1) == 0 }
	switch {
	case !power(r.SQEntries, maxSQEntries) || !power(r.CQEntries, maxCQEntries):
		return bad("there is none with %d and %d entries", r.SQEntries, r.CQEntries)
	case r.Flags&^ringFlags != 0 || r.Flags&(ringNoMmap|ringFDOnly) != 0:
		return bad("the flags are %#x", r.Flags)
	case r.SQTail-r.SQHead > r.SQEntries || r.CQTail-r.CQHead > r.CQEntries:
		return bad("%d of %d requests and %d of %d completions wait", r.SQTail-r.SQHead, r.SQEntries, r.CQTail-r.CQHead, r.CQEntries)
	case r.Flags&ringSQPoll != 0 && r.SQTail != r.SQHead:
		return bad("requests wait for a kernel thread")
	case r.Flags&ringDisabled != 0 && (r.SQHead != 0 || r.CQTail != 0):
		return bad("one that is disabled has had requests")
	case len(r.Files) > 1<<15 || len(r.Buffers) > 1<<14:
		return bad("%d files and %d buffers are registered", len(r.Files), len(r.Buffers))
	case len(r.Maps) > 1<<10:
		return bad("there are %d mappings of it", len(r.Maps))
	}
	rings, sqes := r.mapLens()
	for _, m := range r.Maps {
		most := rings
		if m.Off == ringOffSQEs {
			most = sqes
		} else if m.Off != ringOffSQ && m.Off != ringOffCQ {
			return bad("nothing can be mapped at offset %#x", m.Off)
		}
		if m.Start%pageSize != 0 || m.Len%pageSize != 0 || m.Len == 0 || m.Len > most || m.Prot&^(unix.PROT_READ|unix.PROT_WRITE) != 0 {
			return bad("a mapping of %#x bytes at %#x of pid %d cannot be", m.Len, m.Start, m.PID)
		}
	}
	for _, b := range r.Buffers {
		if len(b) != 2 || b[1] > 1<<30 {
			return bad("a registered buffer cannot be")
		}
	}
	return r.affordable()
}

// fits checks a record against the rest of the image.
func (r *uringRec) fits(rec *image.File, e *Env) error {
	if err := r.check(); err != nil {
		return err
	}
	i := slices.IndexFunc(e.Manifest.Tasks, func(t image.Task) bool { return t.PID == r.PID })
	if i < 0 || e.Manifest.Tasks[i].MM == 0 || len(e.Manifest.Tasks[i].Threads) == 0 {
		return fmt.Errorf("io_uring: the process %d that has to make it is not in the image", r.PID)
	}
	t := &e.Manifest.Tasks[i]
	j := slices.IndexFunc(t.Threads, func(th image.Thread) bool { return th.TID == r.Thread })
	if j < 0 {
		return fmt.Errorf("io_uring: the thread %d that has to make it is not in the image", r.Thread)
	}
	if c := &t.Threads[j].Creds; r.Flags&ringSQPoll != 0 && (c.UID != [4]uint32{} || c.GID != [4]uint32{}) {
		return fmt.Errorf("io_uring: its kernel thread would run as root, but pid %d does not", r.PID)
	}
	for _, m := range r.Maps {
		k := slices.IndexFunc(e.Manifest.Tasks, func(t image.Task) bool { return t.PID == m.PID })
		if k < 0 || e.Manifest.Tasks[k].MM == 0 {
			return fmt.Errorf("io_uring: the process %d that maps it is not in the image", m.PID)
		}
		vmas := e.Manifest.MMs[e.Manifest.Tasks[k].MM-1].VMAs
		if !slices.ContainsFunc(vmas, func(v image.VMA) bool { return v.Kind == image.VMARing && v.Start == m.Start && v.End == m.Start+m.Len }) {
			return fmt.Errorf("io_uring: pid %d does not map it at %#x", m.PID, m.Start)
		}
	}
	sqes, cqes, array := r.sizes()
	if b, err := e.Blob(rec.Blob); err != nil || len(b) != sqes+cqes+array {
		return fmt.Errorf("io_uring: its content has %d bytes, not %d: %w", len(b), sqes+cqes+array, err)
	}
	return nil
}

// CheckOpen makes a small ring: a kernel may have none (kernel.io_uring_disabled).
func (uring) CheckOpen(rec *image.File, e *Env) (string, error) {
	var r uringRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	if err := r.fits(rec, e); err != nil {
		return "", err
	}
	return "", ProbeRing(r.Flags)
}

// ProbeRing tells whether this kernel makes rings, with these flags.
func ProbeRing(flags uint32) error {
	const trial = ringSQE128 | ringCQE32 | ringNoSQArray | ringSingleIssuer | 0x3<<7 | 1<<9 | 1<<13 | 1<<18 // what starts no thread and needs nothing
	p := ringParams{Flags: flags & trial}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return fmt.Errorf("this kernel makes no io_uring like it: %w; see sysctl kernel.io_uring_disabled, and restore it under the kernel it was taken on", errno)
	}
	return unix.Close(int(fd))
}

// Dead is Later.Dead: a ring is about no process, but one has to make it.
func (uring) Dead(*image.File) ([]Dead, error) { return nil, nil }

// Apart says that a descriptor of it cannot be sent by SCM_RIGHTS.
func (uring) Apart() {}

func (uring) Open(rec *image.File, e *Env) (int, error) {
	var r uringRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	if err := r.fits(rec, e); err != nil {
		return -1, err
	}
	content, err := e.Blob(rec.Blob)
	if err != nil {
		return -1, err
	}
	fd := -1
	err = e.In(int(r.Thread), func(p Process) error {
		var params ringParams
		if fd, params, err = r.setup(p); err != nil {
			return err
		}
		return r.settle(p, fd, params, content)
	})
	if err != nil && fd >= 0 {
		unix.Close(fd) // nobody has it
		fd = -1
	}
	return fd, err
}

// setup makes the ring in a process and brings it here.
func (r *uringRec) setup(p Process) (int, ringParams, error) {
	params := ringParams{Flags: r.Flags&^ringAttachWQ | ringCQSize, CQEntries: r.CQEntries, Idle: r.Idle, CPU: r.CPU}
	addr, err := p.Put(bytes.Clone(asBytes(&params)))
	if err != nil {
		return -1, params, err
	}
	num, err := p.Syscall(unix.SYS_IO_URING_SETUP, uint64(r.SQEntries), addr)
	if err != nil {
		return -1, params, fmt.Errorf("io_uring_setup: %w", err)
	}
	pidfd, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		return -1, params, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(num), 0)
	if err != nil {
		return -1, params, fmt.Errorf("pidfd_getfd of the ring: %w", err)
	}
	if _, err := p.Syscall(unix.SYS_CLOSE, num); err != nil {
		return fd, params, fmt.Errorf("close the ring in its process: %w", err)
	}
	mem, err := processMemory(p.PID(), addr, len(asBytes(&params)))
	if err != nil {
		return fd, params, err
	}
	copy(asBytes(&params), mem)
	if params.SQEntries != r.SQEntries || params.CQEntries != r.CQEntries {
		return fd, params, fmt.Errorf("io_uring_setup made one of %d and %d entries, not %d and %d", params.SQEntries, params.CQEntries, r.SQEntries, r.CQEntries)
	}
	return fd, params, nil
}

func asBytes(p *ringParams) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// processMemory reads memory of a process.
func processMemory(pid int, addr uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	local := []unix.Iovec{{Base: &b[0], Len: uint64(n)}}
	got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: n}}, 0)
	if err != nil || got != n {
		return nil, fmt.Errorf("read memory of pid %d: %w", pid, err)
	}
	return b, nil
}

// FinishPIDs is Finisher.FinishPIDs: who maps it, and who registers what is registered.
func (uring) FinishPIDs(rec *image.File) ([]int32, error) {
	var r uringRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	pids := []int32{r.PID}
	for _, m := range r.Maps {
		if !slices.Contains(pids, m.PID) {
			pids = append(pids, m.PID)
		}
	}
	return pids, nil
}

// FinishThread is FinishThreader.FinishThread.
func (uring) FinishThread(rec *image.File, pid int32) int32 {
	var r uringRec
	if err := decodeRec(rec, &r); err != nil || pid != r.PID {
		return pid
	}
	return r.Thread
}

func (uring) Finish(rec *image.File, fd int, p Process) error {
	var r uringRec
	if err := decodeRec(rec, &r); err != nil {
		return err
	}
	for _, m := range r.Maps {
		if int(m.PID) != p.PID() {
			continue
		}
		if err := mapRing(p, fd, m); err != nil {
			return err
		}
	}
	if int(r.PID) != p.PID() {
		return nil
	}
	return r.register(fd, p)
}

// register registers what was registered.
func (r *uringRec) register(fd int, p Process) error {
	do := func(what string, op uint64, b []byte, n int) error {
		addr, err := p.Put(b)
		if err != nil {
			return err
		}
		if _, err := p.Syscall(unix.SYS_IO_URING_REGISTER, uint64(fd), op, addr, uint64(n)); err != nil {
			return fmt.Errorf("io_uring_register: %s: %w", what, err)
		}
		return nil
	}
	le := binary.LittleEndian
	if len(r.Files) > 0 {
		var b []byte
		for _, num := range r.Files {
			b = le.AppendUint32(b, uint32(num))
		}
		if err := do("its files", ringRegFiles, b, len(r.Files)); err != nil {
			return err
		}
	}
	if len(r.Buffers) > 0 {
		var b []byte
		for _, buf := range r.Buffers {
			b = le.AppendUint64(le.AppendUint64(b, buf[0]), buf[1])
		}
		if err := do("its buffers", ringRegBuffers, b, len(r.Buffers)); err != nil {
			return err
		}
	}
	if r.EventFD >= 0 {
		op := uint64(ringRegEventFD)
		if r.Async {
			op = ringRegEventFDAsync
		}
		if err := do("its eventfd", op, le.AppendUint32(nil, uint32(r.EventFD)), 1); err != nil {
			return err
		}
	}
	if r.Clock != unix.CLOCK_MONOTONIC {
		return do("its clock", ringRegClock, le.AppendUint64(le.AppendUint64(nil, uint64(r.Clock)), 0), 0)
	}
	return nil
}

// mapRing maps a part of a ring at its place. The kernel lets nobody choose the place, so every other one where it would
// fit is taken while it is mapped.
func mapRing(p Process, fd int, m ringMap) error {
	maps, err := mapsOf(p.PID())
	if err != nil {
		return err
	}
	const lowest = 1 << 16 // vm.mmap_min_addr
	var taken []span
	defer func() {
		for _, s := range taken {
			_, _ = p.Syscall(unix.SYS_MUNMAP, s.start, s.end-s.start) // verified with all other mappings at the end
		}
	}()
	for _, s := range gaps(maps, lowest, m) {
		at, err := p.Syscall(unix.SYS_MMAP, s.start, s.end-s.start, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE, ^uint64(0), 0)
		if err != nil {
			return fmt.Errorf("take %#x-%#x while the ring is mapped: %w", s.start, s.end, err)
		}
		taken = append(taken, span{at, at + s.end - s.start})
	}
	at, err := p.Syscall(unix.SYS_MMAP, 0, m.Len, uint64(m.Prot), unix.MAP_SHARED|unix.MAP_POPULATE, uint64(fd), m.Off)
	if err != nil {
		return fmt.Errorf("map the ring at %#x: %w", m.Start, err)
	}
	if at != m.Start {
		return fmt.Errorf("the kernel mapped the ring at %#x, not at %#x", at, m.Start)
	}
	return nil
}

// span is a piece of an address space.
type span struct{ start, end uint64 }

// gaps are the pieces of free memory to be taken so that m fits nowhere but at its place.
func gaps(maps []procfs.Mapping, low uint64, m ringMap) (all []span) {
	const top = 0x7fff_ffff_f000
	add := func(end uint64) { // what is beside the place would make it larger
		if end > low && (end-low >= m.Len || end == m.Start || low == m.Start+m.Len) {
			all = append(all, span{low, end})
		}
	}
	place := procfs.Mapping{Start: m.Start, End: m.Start + m.Len}
	maps = append(slices.DeleteFunc(slices.Clone(maps), func(v procfs.Mapping) bool { return v.Start >= top }), place)
	slices.SortFunc(maps, func(a, b procfs.Mapping) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	for _, v := range maps {
		add(v.Start)
		low = max(low, v.End)
	}
	add(top)
	return all
}
