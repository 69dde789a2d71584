package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A new ring counts from 0. Where the old one was it gets by requests that do nothing (IORING_OP_NOP): with
// IOSQE_CQE_SKIP_SUCCESS they count as requests only, otherwise as completions, too. What a ring has completed beyond its
// requests (those that complete more than once) comes as messages from another ring. One call takes as many as the ring
// has entries. Measured: 10 million a second for rings of 32 to 2048 entries, 4 million for one of 4.

// What is affordable, in calls and in requests: some ten seconds.
const (
	maxCalls       = 20 << 20
	maxRemoteCalls = 1 << 17 // by ptrace, with IORING_SETUP_SINGLE_ISSUER
	maxRequests    = 100 << 20
)

// affordable tells whether a ring can be brought to where it was in reasonable time.
func (r *uringRec) affordable() error {
	requests := max(r.SQHead, r.CQTail)
	calls := uint64(requests) / uint64(max(r.SQEntries, 1))
	most := uint64(maxCalls)
	if r.Flags&ringSingleIssuer != 0 {
		most = maxRemoteCalls
		if r.CQTail > r.SQHead {
			return fmt.Errorf("io_uring: it has completed more (%d) than it was asked for (%d), and no other thread may complete anything for it (IORING_SETUP_SINGLE_ISSUER)", r.CQTail, r.SQHead)
		}
	}
	if requests > maxRequests || calls > most {
		return fmt.Errorf("io_uring: it has had %d requests, and a restore would have to repeat as many, which takes too long", requests)
	}
	return nil
}

// ringView is a new ring, mapped here.
type ringView struct {
	fd          int
	rings, sqes []byte
	params      ringParams
	enter       func(n uint32) (int, error)
}

func (v *ringView) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&v.rings[off])) }

// settle brings a new ring to where the old one was and gives it the old one's content.
func (r *uringRec) settle(p Process, fd int, params ringParams, content []byte) error {
	v, err := r.view(fd, params)
	if err != nil {
		return err
	}
	defer v.close()
	if r.Flags&ringSingleIssuer != 0 { // by the thread; the descriptor is needed there for the time
		num, err := lend(p, fd)
		if err != nil {
			return err
		}
		v.enter = func(n uint32) (int, error) {
			got, err := p.Syscall(unix.SYS_IO_URING_ENTER, num, uint64(n), 0, 0, 0, 0)
			return int(got), err
		}
		if err := r.advance(v); err != nil {
			return err
		}
		if _, err := p.Syscall(unix.SYS_CLOSE, num); err != nil {
			return err
		}
	} else if err := r.advance(v); err != nil {
		return err
	}
	sqes, cqes, _ := r.sizes()
	copy(v.sqes, content[:sqes])
	copy(v.rings[params.CQ.CQEs:], content[sqes:][:cqes])
	if r.arrayLen() > 0 {
		copy(v.rings[params.SQ.Array:], content[sqes+cqes:])
	}
	*v.word(params.CQ.Head), *v.word(params.SQ.Dropped), *v.word(params.CQ.Overflow), *v.word(params.CQ.Flags) = r.CQHead, r.Dropped, r.Overflow, r.CQFlags
	*v.word(params.SQ.Tail) = r.SQTail
	return nil
}

// view maps a new ring here.
func (r *uringRec) view(fd int, params ringParams) (*ringView, error) {
	v := &ringView{fd: fd, params: params}
	rings, sqes := r.mapLens()
	var err error
	if v.rings, err = unix.Mmap(fd, ringOffSQ, int(rings), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return nil, fmt.Errorf("map the new ring: %w", err)
	}
	if v.sqes, err = unix.Mmap(fd, ringOffSQEs, int(sqes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		v.close()
		return nil, fmt.Errorf("map the entries of the new ring: %w", err)
	}
	flags := uintptr(0)
	if r.Flags&ringSQPoll != 0 {
		flags = ringSQWakeup
	}
	v.enter = func(n uint32) (int, error) {
		got, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), 0, flags, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(got), nil
	}
	return v, nil
}

func (v *ringView) close() {
	for _, b := range [][]byte{v.rings, v.sqes} {
		if b != nil {
			_ = unix.Munmap(b) // a mapping of our own
		}
	}
}

// advance makes requests that do nothing until the kernel counts as it did.
func (r *uringRec) advance(v *ringView) error {
	both := min(r.SQHead, r.CQTail)
	if err := r.nops(v, both, 0); err != nil {
		return err
	}
	if err := r.nops(v, r.SQHead-both, ringSkipCQE); err != nil {
		return err
	}
	if n := r.CQTail - both; n > 0 {
		if err := v.messages(n, r.CQEntries); err != nil {
			return err
		}
	}
	if sq, cq := *v.word(v.params.SQ.Head), *v.word(v.params.CQ.Tail); sq != r.SQHead || cq != r.CQTail {
		return fmt.Errorf("the new ring counts %d requests and %d completions, not %d and %d", sq, cq, r.SQHead, r.CQTail)
	}
	return nil
}

// nops makes n requests with these flags, and takes their completions.
func (r *uringRec) nops(v *ringView, n uint32, flags byte) error {
	if n == 0 {
		return nil
	}
	clear(v.sqes)
	for i := range int(r.SQEntries) {
		v.sqes[i*r.sqeSize()+1] = flags
		if r.arrayLen() > 0 {
			binary.LittleEndian.PutUint32(v.rings[int(v.params.SQ.Array)+4*i:], uint32(i))
		}
	}
	head, tail := v.word(v.params.SQ.Head), v.word(v.params.SQ.Tail)
	until := time.Now().Add(time.Minute)
	for n > 0 {
		step := min(n, r.SQEntries)
		*tail += step
		for load(head) != *tail {
			got, err := v.enter(*tail - load(head))
			if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return fmt.Errorf("io_uring_enter: %w", err)
			}
			if got == 0 && time.Now().After(until) {
				return fmt.Errorf("the new ring takes no requests")
			}
			if r.Flags&ringSQPoll != 0 && load(head) != *tail {
				time.Sleep(10 * time.Microsecond)
			}
		}
		if err := v.take(flags == 0, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// take waits for completions and takes them.
func (v *ringView) take(some bool, n uint32) error {
	if !some {
		return nil
	}
	head, tail := v.word(v.params.CQ.Head), v.word(v.params.CQ.Tail)
	for until := time.Now().Add(time.Minute); load(tail)-*head != n; {
		if time.Now().After(until) {
			return fmt.Errorf("the new ring completes %d requests of %d", load(tail)-*head, n)
		}
		time.Sleep(10 * time.Microsecond)
	}
	*head = load(tail)
	return nil
}

// messages completes n times on the ring what was not asked for, by messages of another ring.
func (v *ringView) messages(n, entries uint32) error {
	const mine = 64
	other := uringRec{SQEntries: mine, CQEntries: 2 * mine}
	p := ringParams{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, mine, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	defer unix.Close(int(fd))
	o, err := other.view(int(fd), p)
	if err != nil {
		return err
	}
	defer o.close()
	for i := range mine {
		e := o.sqes[64*i:]
		e[0], e[1] = ringOpMsg, ringSkipCQE
		binary.LittleEndian.PutUint32(e[4:], uint32(v.fd))
		binary.LittleEndian.PutUint32(o.rings[int(p.SQ.Array)+4*i:], uint32(i))
	}
	for n > 0 {
		step := min(n, mine, entries)
		*o.word(p.SQ.Tail) += step
		if got, err := o.enter(step); err != nil || got != int(step) {
			return fmt.Errorf("send %d messages to the new ring, of which %d went: %w", step, got, err)
		}
		if err := v.take(true, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// lend gives a process a descriptor of ours, for calls in it.
func lend(p Process, fd int) (uint64, error) {
	pidfd, err := p.Syscall(unix.SYS_PIDFD_OPEN, uint64(unix.Getpid()), 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd_open of us in pid %d: %w", p.PID(), err)
	}
	num, err := p.Syscall(unix.SYS_PIDFD_GETFD, pidfd, uint64(fd), 0)
	_, cerr := p.Syscall(unix.SYS_CLOSE, pidfd)
	if err = errors.Join(err, cerr); err != nil {
		return 0, fmt.Errorf("pidfd_getfd in pid %d: %w", p.PID(), err)
	}
	return num, nil
}

// Lend gives a process a descriptor of ours that cannot be sent to it, under the lowest number that is free there.
func Lend(p Process, fd int) (uint64, error) { return lend(p, fd) }

// load reads what the kernel changes.
func load(p *uint32) uint32 { return atomic.LoadUint32(p) }
