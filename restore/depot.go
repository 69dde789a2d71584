package restore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// depot keeps files that are open and that no process has yet. A few keep their descriptors. The
// others wait as messages in the queues of unix sockets (SCM_RIGHTS of unix(7)), where they
// have no descriptor numbers: a tree may have more files than we may have descriptors. They are
// to be taken in the order in which they were put; another order costs numbers, as what comes
// before is taken out with it.
type depot struct {
	keep     int                   // how many keep their descriptors
	size     int                   // how many of the others are one message
	hands    int                   // how many may be opened before they are put here
	queues   [][2]int              // the two ends of each; the first is read until it is empty
	messages [][]image.ObjRef      // what is in the queues, message by message
	in       map[image.ObjRef]bool // what is there at all
	refs     []image.ObjRef        // the next message
	fds      []int                 // and its descriptors
	loose    map[image.ObjRef]int  // descriptors of ours, for what is in no queue
}

func newDepot() *depot {
	d := &depot{size: 1, hands: 1, in: map[image.ObjRef]bool{}, loose: map[image.ObjRef]int{}}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err == nil {
		d.keep = int(min(l.Cur/4, 1<<16))
		d.size = int(min(max(l.Cur/8, 1), maxRights)) // two messages are in our hands at times
		d.hands = int(min(max(l.Cur/16, 1), longestRun))
	}
	return d
}

// put takes over our descriptor of a file.
func (d *depot) put(ref image.ObjRef, fd int) error {
	d.in[ref] = true
	if len(d.loose) < d.keep {
		d.loose[ref] = fd
		return nil
	}
	d.refs, d.fds = append(d.refs, ref), append(d.fds, fd)
	if len(d.fds) < d.size {
		return nil
	}
	return d.flush()
}

// flush puts the files that wait for their message to be full into a queue. Where the kernel
// takes no more of them, they keep their descriptors.
func (d *depot) flush() error {
	if len(d.fds) == 0 {
		return nil
	}
	refs, fds := d.refs, d.fds
	d.refs, d.fds = nil, nil
	switch err := d.send(fds); {
	case errors.Is(err, unix.ETOOMANYREFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENOBUFS):
		for i, ref := range refs {
			d.loose[ref] = fds[i]
		}
		return nil
	case err != nil:
		closeAll(fds)
		return fmt.Errorf("restore: keep %d open files in a socket: %w", len(fds), err)
	}
	d.messages = append(d.messages, refs)
	closeAll(fds)
	return nil
}

// send sends one message into the last queue, or into a new one if that is full.
func (d *depot) send(fds []int) error {
	rights := unix.UnixRights(fds...)
	if n := len(d.queues); n > 0 {
		if err := unix.Sendmsg(d.queues[n-1][0], []byte{0}, rights, nil, unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d.queues = append(d.queues, pair)
	return unix.Sendmsg(pair[0], []byte{0}, rights, nil, unix.MSG_DONTWAIT)
}

// holds reports whether a file is there.
func (d *depot) holds(ref image.ObjRef) bool { return d.in[ref] }

// take gives a file to the caller, as a descriptor of ours.
func (d *depot) take(ref image.ObjRef) (int, error) {
	for {
		if fd, ok := d.loose[ref]; ok {
			delete(d.loose, ref)
			delete(d.in, ref)
			return fd, nil
		}
		if len(d.messages) == 0 {
			return -1, fmt.Errorf("restore: open file %d is not where it was put", ref)
		}
		if err := d.receive(); err != nil {
			return -1, err
		}
	}
}

// borrow gives the caller a descriptor of a file that stays there.
func (d *depot) borrow(ref image.ObjRef) (int, error) {
	fd, err := d.take(ref)
	if err != nil {
		return -1, err
	}
	d.loose[ref], d.in[ref] = fd, true
	return dupFD(fd)
}

// receive takes the oldest message out.
func (d *depot) receive() error {
	refs := d.messages[0]
	control := make([]byte, unix.CmsgSpace(4*maxRights))
	var n int
	for {
		var err error
		_, n, _, _, err = unix.Recvmsg(d.queues[0][1], make([]byte, 1), control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) && len(d.queues) > 1 {
			closeAll(d.queues[0][:])
			d.queues = d.queues[1:]
			continue
		}
		if err != nil {
			return fmt.Errorf("restore: take %d open files out of a socket: %w", len(refs), err)
		}
		break
	}
	d.messages = d.messages[1:]
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(control[:n])
	if err == nil && len(msgs) == 1 {
		fds, err = unix.ParseUnixRights(&msgs[0])
	}
	if err == nil && len(fds) != len(refs) {
		err = fmt.Errorf("%d came out: %w", len(fds), unix.EMFILE)
	}
	if err != nil {
		closeAll(fds)
		return &HostError{What: fmt.Sprintf("take %d open files out of a socket", len(refs)), Err: err, Remedy: openRemedy(err)}
	}
	for i, ref := range refs {
		d.loose[ref] = fds[i]
	}
	return nil
}

// close closes all that is there.
func (d *depot) close() {
	if d == nil {
		return // no file was ever put by
	}
	closeAll(d.fds)
	for _, fd := range d.loose {
		closeFD(fd)
	}
	for _, q := range slices.Clone(d.queues) {
		closeAll(q[:])
	}
	*d = *newDepot()
}

// closeAll closes descriptors of ours.
func closeAll(fds []int) {
	for _, fd := range fds {
		closeFD(fd)
	}
}
