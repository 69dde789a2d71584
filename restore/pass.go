package restore

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// maxRights is SCM_MAX_FD: how many descriptors one message carries.
const maxRights = 253

// fdAreas is how the descriptor numbers of a stub are used while its files arrive: below
// base stand the final ones, or, before there are any, those of the message just received;
// base is the channel, and above stand the descriptors that have arrived.
type fdAreas struct {
	base int
	next int // the first free number above base
}

// openAreas moves the channel of a stub, which is its descriptor 0, above every number that
// the process will have, and raises its limit so that n more fit.
func (j *job) openAreas(p *proc, highest, n int) (*fdAreas, error) {
	a := &fdAreas{base: max(highest+1, maxRights+1)}
	a.next = a.base + 1
	if err := raiseNoFile(p.pid, uint64(a.next+n)); err != nil {
		return nil, err
	}
	return a, p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_DUP3, 0, uint64(a.base), unix.O_CLOEXEC).Label("move the channel")
		b.Call(unix.SYS_CLOSE, 0)
	})
}

// raiseNoFile makes sure that a process may have descriptors below n. Its own limits are
// set when it has its files.
func raiseNoFile(pid int, n uint64) error {
	var have unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &have); err != nil {
		return fmt.Errorf("restore pid %d: read its limit of open files: %w", pid, err)
	}
	if have.Cur >= n {
		return nil
	}
	want := unix.Rlimit{Cur: n, Max: max(n, have.Max)}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil); err != nil {
		return &HostError{What: fmt.Sprintf("pid %d needs descriptors up to %d while it is restored, twice what it has open; the hard limit is %d", pid, n, have.Max),
			Err: err, Remedy: "run the restore with CAP_SYS_RESOURCE or raise its limit (ulimit -Hn)"}
	}
	return nil
}

// pass sends descriptors of ours to a stub and returns the numbers they have there.
func (j *job) pass(p *proc, a *fdAreas, fds []int) ([]int, error) {
	var nums []int
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		got, err := j.passSome(p, a, fds[:n])
		if err != nil {
			return nil, err
		}
		nums = append(nums, got...)
		fds = fds[n:]
	}
	return nums, nil
}

// passSome is pass for one message. The kernel gives what arrives the lowest free numbers
// in order, and all below base are free.
func (j *job) passSome(p *proc, a *fdAreas, fds []int) ([]int, error) {
	if err := unix.Sendmsg(j.channel[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
		return nil, fmt.Errorf("restore pid %d: send it %d files: %w", p.pid, len(fds), err)
	}
	b, err := p.rem.NewBatch()
	if err != nil {
		return nil, err
	}
	const cmsgHead = 16

	data := b.Alloc(16)
	control := b.Alloc(cmsgHead + 4*len(fds))
	iov := make([]byte, 16)
	le.PutUint64(iov, data.Addr())
	le.PutUint64(iov[8:], 1)
	hdr := make([]byte, 56) // struct msghdr
	le.PutUint64(hdr[16:], b.Put(iov).Addr())
	le.PutUint64(hdr[24:], 1)
	le.PutUint64(hdr[32:], control.Addr())
	le.PutUint64(hdr[40:], uint64(cmsgHead+4*len(fds)))
	msg := b.Put(hdr)
	b.Call(unix.SYS_RECVMSG, uint64(a.base), msg.Addr(), unix.MSG_DONTWAIT).Label("receive files")
	nums := make([]int, len(fds))
	for i := range fds {
		b.Call(unix.SYS_FCNTL, uint64(i), unix.F_DUPFD_CLOEXEC, uint64(a.next)).Label("move a received file")
		nums[i] = a.next
		a.next++
	}
	b.Call(unix.SYS_CLOSE_RANGE, 0, uint64(len(fds)-1), 0).Label("close the received numbers")
	if err := b.Run(); err != nil {
		return nil, fmt.Errorf("restore pid %d: receive %d files: %w", p.pid, len(fds), err)
	}
	if flags := le.Uint32(msg.Bytes()[48:]); flags&unix.MSG_CTRUNC != 0 {
		return nil, fmt.Errorf("restore pid %d: not all of %d files arrived: its limit of open files is too low", p.pid, len(fds))
	}
	for i := range fds {
		if got := le.Uint32(control.Bytes()[cmsgHead+4*i:]); int(got) != i {
			return nil, fmt.Errorf("restore pid %d: file %d arrived as descriptor %d", p.pid, i, got)
		}
	}
	return nums, nil
}

// closeArea closes the numbers from the channel, or from above it, upwards.
func (a *fdAreas) closeArea(p *proc, keepChannel bool) error {
	from := a.base
	if keepChannel {
		from++
	}
	_, err := p.call("close its temporary descriptors", unix.SYS_CLOSE_RANGE, uint64(from), ^uint64(0)>>32, 0)
	a.next = a.base + 1
	return err
}
