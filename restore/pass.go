package restore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// How descriptors come to their numbers. What arrives in a message gets the lowest free
// numbers in order (unix(7)), so the numbers of a table are filled from below, and each file
// arrives at its number or below it, whence it is moved up, the last of a message first: then
// its number is free. The channel stands on a number that the table does not use. So no number
// is needed but these and the channel's, and that is above the table only if the table has
// no gap. If such a table ends where the limit does, see inject.go.

// maxRights is SCM_MAX_FD: how many descriptors one message carries.
const maxRights = 253

// arrive sends descriptors of ours to a stub, whose numbers in use are those of placed, which
// ascend, and the channel. With queue it adds more calls to the batch, and is told where
// the files will stand.
func (j *job) arrive(p *proc, channel int, placed []image.FD, fds []int, flags uint64, queue func(b *ptrace.Batch, at []int)) error {
	if err := unix.Sendmsg(j.channel[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
		return fmt.Errorf("restore pid %d: send it %d files: %w", p.pid, len(fds), err)
	}
	b, err := p.rem.NewBatch()
	if err != nil {
		return err
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
	b.Call(unix.SYS_RECVMSG, uint64(channel), msg.Addr(), unix.MSG_DONTWAIT|flags).Label("receive files")
	at := lowestFree(placed, channel, len(fds))
	queue(b, at)
	if err := b.Run(); err != nil {
		return fmt.Errorf("restore pid %d: receive %d files: %w", p.pid, len(fds), err)
	}
	if flags := le.Uint32(msg.Bytes()[48:]); flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("restore pid %d: not all of %d files arrived: its limit of open files is too low", p.pid, len(fds))
	}
	for i := range fds {
		if got := le.Uint32(control.Bytes()[cmsgHead+4*i:]); int(got) != at[i] {
			return fmt.Errorf("restore pid %d: file %d arrived as descriptor %d, should be %d", p.pid, i, got, at[i])
		}
	}
	return nil
}

// lowestFree returns the n lowest numbers that are neither in placed, which ascends, nor the
// channel.
func lowestFree(placed []image.FD, channel, n int) []int {
	out := make([]int, 0, n)
	for x := 0; len(out) < n; x++ {
		if len(placed) > 0 && int(placed[0].Num) == x {
			placed = placed[1:]
		} else if x != channel {
			out = append(out, x)
		}
	}
	return out
}

// place gives the next numbers of a table, at most maxRights, the files of fds.
func (j *job) place(p *proc, channel int, placed, next []image.FD, fds []int) error {
	closing := 0
	for _, fd := range next {
		if fd.CloExec {
			closing++
		}
	}
	flags, arrivesClosing := uint64(0), closing > len(next)/2
	if arrivesClosing {
		flags = unix.MSG_CMSG_CLOEXEC
	}
	return j.arrive(p, channel, placed, fds, flags, func(b *ptrace.Batch, at []int) {
		for i, fd := range slices.Backward(next) {
			if at[i] == int(fd.Num) && fd.CloExec == arrivesClosing {
				continue
			}
			label := fmt.Sprintf("place descriptor %d", fd.Num)
			switch {
			case at[i] != int(fd.Num):
				set := uint64(0)
				if fd.CloExec {
					set = unix.O_CLOEXEC
				}
				b.Call(unix.SYS_DUP3, uint64(at[i]), uint64(fd.Num), set).Label(label)
				b.Call(unix.SYS_CLOSE, uint64(at[i])).Label(label)
			default:
				set := uint64(0)
				if fd.CloExec {
					set = unix.FD_CLOEXEC
				}
				b.Call(unix.SYS_FCNTL, uint64(fd.Num), unix.F_SETFD, set).Label(label)
			}
		}
	})
}

// channelFor returns the lowest number that a table does not use.
func channelFor(table []image.FD) int { return lowestFree(table, -1, 1)[0] }

// moveChannel moves the channel of a stub away from 0, where it is at first.
func (p *proc) moveChannel(to int) error {
	if to == 0 {
		return nil
	}
	return p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_DUP3, 0, uint64(to), unix.O_CLOEXEC).Label("move the channel")
		b.Call(unix.SYS_CLOSE, 0).Label("move the channel")
	})
}

// roomFor lets a process have descriptors below n, or as many as its hard limit and
// our privileges allow, and returns how many those are. Its own limits are set when it has
// its files.
func roomFor(pid, n int) (int, error) {
	var have unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &have); err != nil {
		return 0, fmt.Errorf("restore pid %d: read its limit of open files: %w", pid, err)
	}
	want := unix.Rlimit{Cur: uint64(n), Max: max(uint64(n), have.Max)}
	if have.Cur >= want.Cur {
		return n, nil
	}
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil)
	if errors.Is(err, unix.EPERM) && have.Max < want.Cur {
		want = unix.Rlimit{Cur: have.Max, Max: have.Max}
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil)
	}
	if err != nil {
		return 0, fmt.Errorf("restore pid %d: raise its limit of open files to %d: %w", pid, want.Cur, err)
	}
	return int(want.Cur), nil
}

// fileSource finds our descriptors of the files of a process.
type fileSource struct {
	j      *job
	pidfds map[int]int // of processes that have files which this one has too
}

// get returns our descriptor of the file of each slot, and those that are to be closed.
func (s *fileSource) get(slots []image.FD) (fds, own []int, err error) {
	have := map[image.ObjRef]int{}
	for _, fd := range slots {
		if _, ok := have[fd.File]; !ok {
			n, err := s.one(fd.File)
			if err != nil {
				closeAll(own)
				return nil, nil, err
			}
			have[fd.File], own = n, append(own, n)
		}
		fds = append(fds, have[fd.File])
	}
	return fds, own, nil
}

// one returns a descriptor of a file: from the depot for the first who gets it, then
// from him; terminals of sessions are always here.
func (s *fileSource) one(ref image.ObjRef) (int, error) {
	if fd, ok := s.j.ttys[ref]; ok {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, s.j.fileError(ref, "duplicate it", openRemedy(err), err)
		}
		return dup, nil
	}
	if s.j.depot.holds(ref) {
		return s.j.depot.take(ref)
	}
	at := s.j.holder[ref]
	pidfd, ok := s.pidfds[at.pid]
	if !ok {
		var err error
		if pidfd, err = s.j.openPidfd(at.pid); err != nil {
			return -1, err
		}
		s.pidfds[at.pid] = pidfd
	}
	fd, err := unix.PidfdGetfd(pidfd, at.num, 0)
	if err != nil {
		return -1, s.j.fileError(ref, "hand it to the next process that has it: pidfd_getfd", openRemedy(err), err)
	}
	return fd, nil
}

func (s *fileSource) close() {
	for _, fd := range s.pidfds {
		closeFD(fd)
	}
}
