package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"github.com/ckptfs/ckptfs/restore/lazy"
	"golang.org/x/sys/unix"
)

// pages is what of a restore is lazy: the page server, and how much it has been given. See package
// lazy for how it works.
type pages struct {
	client *lazy.Client
	mu     sync.Mutex // of one who hands over
	open   bool       // the server has the image open
	left   bool       // it goes on without us
	total  uint64
}

// startLazy starts the page server. While it gets ready we go on.
func (j *job) startLazy() error {
	if j.opt.Lazy == nil {
		return nil
	}
	c, err := lazy.Start(j.opt.Lazy)
	if err != nil {
		return &HostError{What: "a lazy restore cannot be done here", Err: err,
			Remedy: "run it as root, under a kernel with userfaultfd (see ckptfs check), or restore without --lazy"}
	}
	j.pages = &pages{client: c}
	return nil
}

func (l *pages) bytes() uint64 {
	if l == nil {
		return 0
	}
	return l.total
}

func (l *pages) server() int {
	if l == nil || l.total == 0 {
		return 0
	}
	return l.client.PID
}

// close ends the server if the processes did not come to run.
func (l *pages) close() {
	if l != nil && !l.left {
		l.client.Close()
	}
}

// What is lazy of a process: what is smaller is as soon there as it is handed over, and each part
// takes some calls.
const (
	lazyLen   = 64 << 10
	lazyMost  = 4096
	lazyHoles = 32 << 20 // a hole of this size is left to the kernel
)

// canWait reports whether the pages of a VMA may come after the process runs: private anonymous
// memory that nothing is done with by the kernel as a whole. Locked memory would be brought in at once,
// and what a child gets zeroed would come to it from the image.
func canWait(v *image.VMA) bool {
	return v.Kind == image.VMAAnon && v.Flags&unix.MAP_TYPE == unix.MAP_PRIVATE && v.Flags&(unix.MAP_HUGETLB|unix.MAP_GROWSDOWN) == 0 &&
		v.Name != "[stack]" && stored(v) >= lazyLen &&
		!slices.ContainsFunc(v.VMFlags, func(f string) bool { return f == "lo" || f == "lf" || f == "wf" })
}

// postpone leaves memory of a process to the page server. It reports which VMAs of the address space,
// counted from 0 as this, are not to be filled.
func (j *job) postpone(ctx context.Context, p *proc, mm int) (map[int]bool, error) {
	if j.pages == nil {
		return nil, nil
	}
	vmas := j.m.MMs[mm].VMAs
	if slices.ContainsFunc(vmas, func(v image.VMA) bool { return len(v.Guards) > 0 }) {
		return nil, nil // it uses guard regions, and of those that it makes in missing memory the kernel tells nobody
	}
	var later []int
	for i := range vmas {
		if canWait(&vmas[i]) {
			later = append(later, i)
		}
	}
	slices.SortStableFunc(later, func(a, b int) int { return cmp.Compare(stored(&vmas[b]), stored(&vmas[a])) })
	later = later[:min(len(later), lazyMost)]
	if len(later) == 0 {
		return nil, nil
	}
	slices.Sort(later)
	j.pages.mu.Lock()
	defer j.pages.mu.Unlock()
	if err := j.handOver(ctx, p, mm, later); err != nil {
		return nil, fmt.Errorf("restore pid %d: leave its memory to the page server: %w", p.pid, err)
	}
	skip := map[int]bool{}
	for _, i := range later {
		skip[i] = true
		j.pages.total += stored(&vmas[i])
	}
	return skip, nil
}

// handOver registers VMAs with a userfaultfd that the server gets. Faults in the kernel, as of a read(2)
// into such memory, count too. The descriptor may stay over an exec: see the guard of package lazy.
func (j *job) handOver(ctx context.Context, p *proc, mm int, later []int) error {
	fd, err := fetchUFFD(p, unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer closeFD(int(fd))
	if err := fd.Init(lazy.Features); err != nil {
		return err
	}
	for _, i := range later {
		for _, s := range solid(&j.m.MMs[mm].VMAs[i]) {
			if err := fd.Register(s.Start, s.End-s.Start, uffd.Missing); err != nil {
				return err
			}
		}
	}
	pidfd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer closeFD(pidfd)
	if !j.pages.open {
		if err := j.pages.client.Opened(ctx); err != nil {
			return err
		}
		j.pages.open = true
	}
	return j.pages.client.Add(ctx, p.pid, mm, later, int(fd), pidfd)
}

// solid lists the parts of a VMA that have content, without its large holes.
func solid(v *image.VMA) (all []span) {
	for _, e := range v.Extents {
		if n := len(all); n > 0 && e.Start-all[n-1].End < lazyHoles {
			all[n-1].End = e.Start + e.Len
		} else {
			all = append(all, span{e.Start, e.Start + e.Len})
		}
	}
	return all
}

// leaveToServer lets the server go on alone: the processes are about to run.
func (j *job) leaveToServer(ctx context.Context, alive []*proc) error {
	if j.pages == nil {
		return nil
	}
	if j.pages.total == 0 { // everything is there already; close waits for the end of the server
		j.pages.client.HangUp()
		return nil
	}
	if err := j.each("touch", alive, touchThreads); err != nil {
		return err
	}
	if err := j.pages.client.Go(ctx); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	j.pages.left = true
	j.log("%d MiB of memory come later", j.pages.total>>20)
	return nil
}

// touchThreads brings in what the kernel looks at without waiting for a page. When a thread ends (PF_EXITING in
// handle_userfault) that is the word of set_tid_address(2) and the list of its robust mutexes: a
// pthread_join(3), or the heir of a mutex, would wait for ever. And it is the words of a futex(2) that a
// thread goes on with (fault_in_user_writeable): locking a mutex with priority inheritance would fail with EFAULT.
func touchThreads(p *proc) error {
	for i := range p.task.Threads {
		th := &p.task.Threads[i]
		words := []uint64{th.ClearTID}
		regs, err := ptrace.BytesRegs(th.Regs)
		if err != nil {
			return fmt.Errorf("restore pid %d: thread %d: %w", p.pid, th.TID, err)
		}
		if regs.Rax == unix.SYS_FUTEX {
			words = append(words, regs.Rdi, regs.R8)
		}
		for _, addr := range words {
			if err := p.touch(addr); err != nil {
				return err
			}
		}
		if err := p.touchRobust(th.RobustList); err != nil {
			return err
		}
	}
	return nil
}

// touchRobust follows a list of robust futexes (struct robust_list_head of linux/futex.h), as far as the
// kernel does. A list that leads astray is the program's affair.
func (p *proc) touchRobust(head uint64) error {
	const limit = 2048 // ROBUST_LIST_LIMIT
	if head == 0 {
		return nil
	}
	b := make([]byte, 24)
	if err := p.peek(head, b); err != nil {
		return gone(err) // else the kernel does not read it either
	}
	offset := le.Uint64(b[8:])
	for _, entry := range []uint64{le.Uint64(b), le.Uint64(b[16:])} { // the list, and what was about to be locked
		for n := 0; n < limit && entry&^1 != head && entry&^1 != 0; n++ {
			if err := p.touch(entry&^1 + offset); err != nil {
				return err
			}
			if err := p.peek(entry&^1, b[:8]); err != nil {
				break
			}
			entry = le.Uint64(b)
		}
	}
	return nil
}

// touch brings in the page at an address, if there is one.
func (p *proc) touch(addr uint64) error {
	if addr == 0 {
		return nil
	}
	if err := p.peek(addr, make([]byte, 1)); err != nil {
		return gone(err)
	}
	return nil
}

// peek reads memory that may have to come first: reading /proc/PID/mem does not wait for it.
func (p *proc) peek(addr uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMReadv(p.pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err == nil && n < len(b) {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("restore pid %d: read %d bytes at %#x: %w", p.pid, len(b), addr, err)
	}
	return nil
}

// gone returns err if it says that the process is no more.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
