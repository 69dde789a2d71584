package lazy

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// space is the address space of one process that misses pages.
//
// mu makes one of two things that must not happen at the same time: reading an event, after which the
// program goes on and, say, throws pages away, and putting pages where the events read so far
// allow it. The kernel refuses to put pages (EAGAIN) while an event waits to be read.
type space struct {
	s    *server
	pid  atomic.Int32 // 0: a child whose pid is not known
	fd   int
	file *os.File // of fd, for waiting
	huge []span   // what were huge pages

	mu     sync.Mutex
	pidfd  int // -1: none
	m      *missing
	flux   flux
	over   bool // nothing is served any more
	total  int64
	failed int64 // bytes that could not be had
	said   bool  // that something could not be had
}

// span is a part of memory.
type span struct{ Start, End uint64 }

// newSpace takes a userfaultfd and, unless it is -1, a pidfd.
func newSpace(s *server, pid, pidfd, fd int, m *missing, huge []span) *space {
	sp := &space{s: s, pidfd: pidfd, fd: fd, file: os.NewFile(uintptr(fd), "userfaultfd"), m: m, total: m.bytes(), huge: huge}
	sp.pid.Store(int32(pid))
	return sp
}

// name names the process in the log.
func (sp *space) name() string {
	if pid := sp.pid.Load(); pid != 0 {
		return fmt.Sprintf("pid %d", pid)
	}
	return "a child"
}

// drop notes that a part of memory is zero.
func (sp *space) drop(part span) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.m.drop(part.Start, part.End)
}

// serve reads what the kernel says until the space is over.
func (sp *space) serve() {
	raw, err := sp.file.SyscallConn()
	if err == nil {
		err = raw.Read(func(uintptr) bool { return sp.readAll() })
	}
	if over, _ := sp.readSome(nil); err != nil && !over {
		sp.s.logf("%s: wait for page faults: %v", sp.name(), err)
	}
}

// readAll reads messages until there is none. It reports whether the space is over.
func (sp *space) readAll() bool {
	buf := make([]byte, 32*messageLen)
	for {
		over, err := sp.readSome(buf)
		switch {
		case over:
			return true
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil && !errors.Is(err, unix.EINTR):
			sp.s.logf("%s: read of its userfaultfd: %v", sp.name(), err)
			return true
		}
	}
}

// readSome reads some messages and does what the events among them say. Faults are seen to by others.
func (sp *space) readSome(buf []byte) (over bool, err error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.over {
		return true, nil
	}
	n, err := unix.Read(sp.fd, buf)
	for b := buf[:max(n, 0)]; len(b) >= messageLen; b = b[messageLen:] {
		m := parseMessage(b)
		switch m.event {
		case eventFault:
			addr, tid := m.fault()
			go sp.fault(addr&^(pageSize-1), tid)
		case eventFork:
			sp.s.forked(sp, m.fork())
		case eventRemap:
			sp.moved(m.a[0], m.a[1], m.a[2])
		case eventRemove:
			sp.m.drop(m.a[0], m.a[1])
		case eventUnmap:
			sp.unmapped(m.a[0], m.a[1])
		}
	}
	sp.settle()
	return false, err
}

// pause is how long who was told to come again waits.
const pause = 50 * time.Microsecond

// fault sees to a thread that waits for a page: with it come its neighbours.
func (sp *space) fault(addr uint64, tid int) {
	sp.s.faults.Add(1)
	defer sp.s.faults.Add(-1)
	sp.s.learn(sp, tid)
	for wait := pause; ; {
		err := sp.bring(addr)
		switch {
		case err == nil:
			return
		case errors.Is(err, unix.ESRCH):
			sp.end()
			return
		case !errors.Is(err, unix.EAGAIN):
			sp.s.logf("%s: a page for %#x: %v; trying again", sp.name(), addr, err)
			wait = time.Second
		}
		time.Sleep(wait)
	}
}

// bring brings the page at an address and wakes who waits for it. EAGAIN: there are events to read first.
func (sp *space) bring(addr uint64) error {
	sp.mu.Lock()
	off, due := sp.m.at(addr)
	if sp.over {
		sp.mu.Unlock()
		return nil
	}
	if !due {
		defer sp.mu.Unlock()
		return sp.zero(addr)
	}
	sp.mu.Unlock()
	from, to := sp.s.around(off)
	if err := sp.fetch(from, to); err != nil {
		return err
	}
	return unix.EAGAIN // make sure of it: the page may have been thrown away meanwhile
}

// zero puts a zero page at an address where nothing is to come. Called with mu held.
func (sp *space) zero(addr uint64) error {
	_, err := uffd.FD(sp.fd).Zero(addr, pageSize)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) { // it is there, or it is none of ours any more
		return uffd.FD(sp.fd).Wake(addr, pageSize)
	}
	return err
}

// fetch reads a part of the image and puts what is missing of it into memory. What cannot be
// read is poisoned.
func (sp *space) fetch(from, to int64) error {
	b := sp.s.buffer(to - from)
	defer sp.s.release(b)
	if _, err := sp.s.image.ReadAt(b, from); err != nil {
		return sp.fetchEach(from, to, b)
	}
	return sp.put(from, to, func(addr uint64, off int64, n uint64) (uint64, error) {
		return uffd.FD(sp.fd).Copy(addr, b[off-from:][:n])
	})
}

// fetchEach is fetch chunk by chunk, after something could not be read.
func (sp *space) fetchEach(from, to int64, b []byte) error {
	for from < to {
		_, c := sp.s.image.ChunkAt(from)
		end := min(to, c.Off+int64(c.Len))
		b := b[:end-from]
		_, err := sp.s.image.ReadAt(b, from)
		if err == nil {
			err = sp.put(from, end, func(addr uint64, off int64, n uint64) (uint64, error) {
				return uffd.FD(sp.fd).Copy(addr, b[off-from:][:n])
			})
		} else {
			err = sp.spoil(from, end, err)
		}
		if err != nil {
			return err
		}
		from = end
	}
	return nil
}

// spoil poisons what is missing of a part of the image: touching it is a SIGBUS, rather than a zero.
func (sp *space) spoil(from, to int64, why error) error {
	sp.mu.Lock()
	lost := sp.m.pieces(from, to)
	first := !sp.said && len(lost) > 0
	sp.said = sp.said || first
	sp.mu.Unlock()
	if first {
		sp.s.logf("%s: its memory at %#x-%#x cannot be had: %v. It gets SIGBUS (or EFAULT from a system call) if it touches that, and what else cannot be had; "+
			"end it and restore it again from a good copy", sp.name(), lost[0].addr, lost[0].end(), why)
	}
	return sp.put(from, to, func(addr uint64, _ int64, n uint64) (uint64, error) {
		done, err := uffd.FD(sp.fd).Poison(addr, n)
		sp.failed += int64(done)
		return done, err
	})
}

// put calls f for all that is missing of a part of the image, until it is there.
func (sp *space) put(from, to int64, f func(addr uint64, off int64, n uint64) (uint64, error)) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.over {
		return nil
	}
	for _, p := range sp.m.pieces(from, to) {
		if err := sp.putPiece(p, p.length, f); err != nil {
			return err
		}
	}
	return nil
}

// putPiece puts a piece, most bytes at a time.
func (sp *space) putPiece(p run, most uint64, f func(addr uint64, off int64, n uint64) (uint64, error)) error {
	for p.length > 0 {
		n, err := f(p.addr, p.off, min(p.length, most))
		switch {
		case err == nil || n > 0: // EAGAIN after some is what the kernel says if it stopped on the way
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT) && most == pageSize:
			// Something is there: a guard page. Or the memory is none of ours any more.
			n = pageSize
			if err := uffd.FD(sp.fd).Wake(p.addr, n); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOENT): // it is in more than one VMA by now
			most = pageSize
			continue
		default:
			return err
		}
		sp.m.came(p.off, n)
		p = run{p.addr + n, p.length - n, p.off + int64(n)}
	}
	return nil
}

// streamLen is how much of the image the stream reads at a time.
const streamLen = 512 << 10

// stream brings everything that is missing, in the order of the image.
func (sp *space) stream() {
	for at := int64(0); ; {
		sp.mu.Lock()
		if !sp.over {
			sp.settle() // what nobody has claimed is not waited for
		}
		from, over := sp.m.next(at), sp.over
		if from < 0 && at > 0 { // from the beginning, for what could not be put
			from = sp.m.next(0)
		}
		sp.mu.Unlock()
		if over || from < 0 {
			break
		}
		from, to := sp.extent(from)
		done := sp.s.turn()
		err := sp.fetch(from, to)
		sp.s.slow(to - from)
		done()
		switch {
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(pause)
			continue
		case errors.Is(err, unix.ESRCH):
			sp.end()
			return
		case err != nil:
			sp.s.logf("%s: bring its memory: %v; trying again", sp.name(), err)
			time.Sleep(time.Second)
			continue
		}
		at = to
	}
	if sp.close() {
		sp.collapse()
		sp.s.ended(sp)
	}
}

// extent is what the stream reads next: whole chunks, as far as all of them have something that is missing.
func (sp *space) extent(from int64) (start, end int64) {
	_, c := sp.s.image.ChunkAt(from)
	start, end = c.Off, c.Off+int64(c.Len)
	sp.mu.Lock()
	defer sp.mu.Unlock()
	for {
		n, c := sp.s.image.ChunkAt(end)
		if n < 0 || end+int64(c.Len)-start > streamLen {
			return start, end
		}
		if next := sp.m.next(end); next < 0 || next >= end+int64(c.Len) {
			return start, end
		}
		end += int64(c.Len)
	}
}

// end ends a space whose memory is no more.
func (sp *space) end() {
	if sp.close() {
		sp.s.ended(sp)
	}
}

// close gives the memory back to the kernel: from now on a missing page is a zero page again. It reports whether
// the caller is the first to do it.
func (sp *space) close() bool {
	sp.mu.Lock()
	was := sp.over
	sp.over = true
	sp.mu.Unlock()
	if !was {
		_ = sp.file.Close() // nothing was written; it cannot fail otherwise than by having been closed
	}
	return !was
}

// collapse makes huge pages of what were huge pages, as well as the kernel can just now.
func (sp *space) collapse() {
	const madvCollapse = 25 // MADV_COLLAPSE, Linux 6.1
	sp.mu.Lock()
	pidfd := sp.pidfd
	sp.mu.Unlock()
	if pidfd < 0 {
		return
	}
	for _, h := range sp.huge {
		iov := unix.RemoteIovec{Base: uintptr(h.Start), Len: int(h.End - h.Start)}
		if _, err := processMadvise(pidfd, iov, madvCollapse); err == unix.ESRCH {
			return
		}
	}
}

func processMadvise(pidfd int, iov unix.RemoteIovec, advice int) (int, error) {
	iovs := [1]unix.RemoteIovec{iov}
	n, _, errno := syscall.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), addressOf(&iovs[0]), 1, uintptr(advice), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
