package kind

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// What threads have with io_uring that no ring tells of.

// PrepareRings makes ready what RingThreads needs, once.
func PrepareRings() {
	_, _ = kmem.Open() // who needs it hears why not
}

// RingThreads tells what a thread of a process has set for itself that is not kept, or "": it has registered
// the descriptor of a ring (IORING_REGISTER_RING_FDS), which then may have no descriptor at all, or
// chosen the processors of its workers (IORING_REGISTER_IOWQ_AFF). A kernel that lets nobody look is
// no error.
func RingThreads(pid int) (string, error) {
	m, err := kmem.Open()
	if err != nil || !m.Has("io_uring_task.registered_rings") {
		return "", nil
	}
	tasks, err := m.Threads(pid)
	if err != nil {
		return "", err
	}
	at, err := m.Offset("io_uring_task.registered_rings")
	if err != nil {
		return "", err
	}
	p := pry{m: m}
	for _, task := range tasks {
		tctx := p.get(task, "task_struct.io_uring")
		if tctx == 0 || p.err != nil {
			continue
		}
		b := make([]byte, 16*8) // IO_RINGFD_REG_MAX pointers
		if err := m.Read(tctx+at, b); err != nil {
			return "", err
		}
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			return "a thread has registered the descriptor of an io_uring (IORING_REGISTER_RING_FDS, IORING_SETUP_REGISTERED_FD_ONLY), which is not kept", nil
		}
		pinned, err := workersPinned(&p, tctx)
		if err != nil {
			return "", err
		}
		if pinned {
			return "a thread has chosen on which processors the workers of its io_uring run (IORING_REGISTER_IOWQ_AFF), which is not kept", nil
		}
	}
	return "", p.err
}

// workersPinned reports whether the workers of a thread may not run on all processors of ours. A tree in
// a cpuset that has fewer than we have looks the same.
func workersPinned(p *pry, tctx uint64) (bool, error) {
	wq := p.maybe(tctx, "io_uring_task.io_wq")
	if wq == 0 || !p.m.Has("io_wq.cpu_mask") {
		return false, p.err
	}
	at, err := p.m.Offset("io_wq.cpu_mask")
	if err != nil {
		return false, err
	}
	mask := wq + at
	if ptr, err := p.m.Get(wq, "io_wq.cpu_mask"); err == nil { // CONFIG_CPUMASK_OFFSTACK; else it lies there
		mask = ptr
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return false, fmt.Errorf("sched_getaffinity: %w", err)
	}
	b := make([]byte, 8*len(all))
	words := 0
	for i, w := range all {
		if w != 0 {
			words = i + 1
		}
	}
	if err := p.m.Read(mask, b[:8*words]); err != nil {
		return false, err
	}
	for i := range words {
		if w := uint64(all[i]); binary.LittleEndian.Uint64(b[8*i:])&w != w {
			return true, nil
		}
	}
	return false, nil
}
