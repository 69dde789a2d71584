package kind

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// unixSenders send once more what waits in one socket. Who sent a datagram is told by recvmsg(2)
// as the name of a socket.
type unixSenders struct {
	w   *unixWorld
	to  *unixNode
	own map[string]int // sockets made for this, by name
}

func (s *unixSenders) close() {
	for _, fd := range s.own {
		unix.Close(fd) // what it sent keeps its name
	}
}

// sender returns a socket with that name that is to send, and whether it is connected to the receiver.
func (s *unixSenders) sender(name []byte) (fd int, connected bool, err error) {
	n := s.to
	if s.w.waits[n.Ino] { // it was itself that sent them
		return n.fd, true, nil
	}
	if n.Type != unix.SOCK_DGRAM {
		fd = n.other
		if n.Peer != 0 {
			fd = s.w.nodes[n.Peer].fd
		}
		if fd < 0 {
			return -1, false, errors.New("the image has messages for it that nobody can send")
		}
		return fd, true, nil
	}
	if p := s.w.twin(n); p != nil {
		if string(p.Name) != string(name) {
			return -1, false, fmt.Errorf("a message in it is from %s, which is not its other end", showName(name))
		}
		return p.fd, true, nil
	}
	if n.other >= 0 && string(n.PeerName) == string(name) {
		return n.other, true, nil
	}
	if fd, ok := s.own[string(name)]; ok {
		return fd, true, nil
	}
	for _, p := range s.w.order {
		if p.Type == n.Type && p.fd >= 0 && p != n && len(name) > 0 && string(p.Name) == string(name) {
			return p.fd, false, nil
		}
	}
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, false, fmt.Errorf("socket: %w", err)
	}
	s.own[string(name)] = fd
	widen(fd)
	if len(name) > 0 {
		if err := bindAway(fd, name); err != nil {
			return -1, false, fmt.Errorf("bind to %s, for a message from it: %w", showName(name), err)
		}
	}
	err = s.w.e.In(s.w.first(), func(Process) error { return connectTo(fd, n.fd, n.Name) })
	return fd, true, err
}

// send sends one message, or one run of a stream.
func (s *unixSenders) send(m *unixMsg, data []byte) error {
	from, connected, err := s.sender(m.From)
	if err != nil {
		return err
	}
	widen(from)
	fds, err := s.w.files(m.Files)
	defer closeOwn(fds)
	if err != nil {
		return err
	}
	p := parcel{from: from, control: credControl(m.Cred)}
	if len(fds) > 0 {
		p.control = append(p.control, unix.UnixRights(fds...)...)
	}
	send := func() error { return p.send(data, 0) }
	switch {
	case !connected: // one of the tree, which may be connected elsewhere
		return s.w.e.In(s.w.first(), func(Process) error { return p.sendTo(s.to, data) })
	case m.Mark != noMark:
		send = func() error { return p.mark(s.to.fd, m.Mark, data) }
	}
	if m.Cred == nil {
		return send()
	}
	// To name another process takes our own credentials.
	return s.w.e.In(s.w.first(), func(Process) error { return send() })
}

// parcel is what goes with data, and the socket that sends it.
type parcel struct {
	from    int
	control []byte
}

// send sends everything on a connected socket. Files go with the first part.
func (p *parcel) send(data []byte, flags int) error {
	for {
		n, err := p.sendOnce(data, flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// sendOnce is sendmsg(2), also of an empty message, of which unix.SendmsgN makes one of a byte if it has control
// data.
func (p *parcel) sendOnce(data []byte, flags int) (int, error) {
	if len(data) > 0 || len(p.control) == 0 {
		return unix.SendmsgN(p.from, data, p.control, nil, flags)
	}
	hdr := &unix.Msghdr{Control: &p.control[0]}
	hdr.SetControllen(len(p.control))
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(p.from), uintptr(unsafe.Pointer(hdr)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return 0, nil
}

// mark sends a run with the out-of-band byte before it: its first, or one that to has read already.
func (p *parcel) mark(to int, mark unixMark, data []byte) error {
	if mark == readOOB {
		if err := p.send([]byte{0}, unix.MSG_OOB); err != nil {
			return fmt.Errorf("MSG_OOB: %w", err)
		}
		if _, _, err := unix.Recvfrom(to, make([]byte, 1), unix.MSG_OOB|unix.MSG_DONTWAIT); err != nil {
			return fmt.Errorf("MSG_OOB: %w", err)
		}
	} else {
		if err := p.send(data[:1], unix.MSG_OOB); err != nil {
			return fmt.Errorf("MSG_OOB: %w", err)
		}
		data = data[1:]
	}
	if len(data) == 0 {
		return nil
	}
	return p.send(data, 0)
}

// files returns descriptors of ours of files that are under way.
func (w *unixWorld) files(refs []image.ObjRef) (fds []int, err error) {
	for _, ref := range refs {
		fd := -1
		if n := w.byRef[ref]; n != nil {
			fd, err = dup(n.fd)
		} else {
			fd, err = w.e.File(ref)
		}
		if err != nil {
			return fds, fmt.Errorf("a file that is under way in it: %w", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// credControl is SCM_CREDENTIALS.
func credControl(c *unixCred) []byte {
	if c == nil {
		return nil
	}
	return unix.UnixCredentials(&unix.Ucred{Pid: c.PID, Uid: c.UID, Gid: c.GID})
}

// sendTo sends a datagram to a socket by its name, or by its file.
func (p *parcel) sendTo(to *unixNode, data []byte) error {
	addr := "@" + string(to.Name)[min(1, len(to.Name)):]
	if isPath(to.Name) {
		file, err := fileOfSocket(to.fd)
		if err != nil {
			return err
		}
		defer unix.Close(file)
		addr = fmt.Sprintf("/proc/self/fd/%d", file)
	}
	_, err := unix.SendmsgN(p.from, data, p.control, &unix.SockaddrUnix{Name: addr}, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return err
}

// widen gives a socket room for what is to be sent. Its own size comes later.
func widen(fd int) {
	const room = 2 * maxUnixQueue
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil || have >= room || unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room) == nil {
		return
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, room) != nil {
		return // then sending says what is missing
	}
	if now, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && now < have {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, have/2)
	}
}

// bindAuto gives a socket an abstract name that nobody has.
func bindAuto(fd int) error {
	if err := addressed(unix.SYS_BIND, fd, []byte{unix.AF_UNIX, 0}); err != nil {
		return fmt.Errorf("bind to any name: %w", err)
	}
	return nil
}
