package kind

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"golang.org/x/sys/unix"
)

// Connections to somebody outside the tree, by the policy tcp=keep. From the moment at which one is read
// to the one at which the restored tree goes on, its packets are kept away (package netlock): the kernel,
// which knows of no such socket meanwhile, would answer them with a reset, and the end of the old
// process would tell the peer that all is over. The peer sends again what it gets no answer to.

// hush keeps away the packets of all connections of the tree to the outside.
func (s *Scene) hush() error {
	if s.Hush == nil || s.hushed {
		return nil
	}
	var conns []netlock.Conn
	for e, f := range s.connected() {
		in, err := f.tcpInfo()
		if err != nil || in.state == tcpClose || in.state == stateListen {
			continue
		}
		if at, why := f.connection(s, in); at == outside && why == "" {
			conns = append(conns, netlock.Conn{Local: e.local, Peer: e.peer})
		}
	}
	s.hushed = true
	if len(conns) == 0 {
		return nil
	}
	return s.Hush(conns)
}

// outside reports whether somebody outside has the other end.
func (n *tcpNode) outside() bool { return n.Conn != nil && n.Conn.Outside }

// sendFrom is the sequence number of the next byte to be put into the queue that is sent.
func (n *tcpNode) sendFrom() uint32 {
	if n.outside() {
		return n.Conn.SendSeq
	}
	return n.peer.Conn.RecvSeq + n.peer.Conn.RecvLen
}

// hush keeps away the packets of the connections to the outside, if there are any.
func (w *tcpWorld) hush() (err error) {
	var conns []netlock.Conn
	for _, n := range w.order {
		if n.outside() {
			e := endsOfConn(n.Name, n.Conn.Peer)
			conns = append(conns, netlock.Conn{Local: e.local, Peer: e.peer})
		}
	}
	if len(conns) == 0 {
		return nil
	}
	w.lock, err = netlock.Take(conns)
	return err
}

// forget gives the connections to the outside up without a word to the peer, who may be told by
// another restore: sockets in repair mode close in silence.
func (w *tcpWorld) forget() error {
	w.closeOutside()
	return w.lock.Back()
}

func (w *tcpWorld) closeOutside() {
	for _, n := range w.order {
		if n.outside() && n.fd >= 0 {
			unix.Close(n.fd) // the processes have theirs, or nobody is to have it
			n.fd = -1
		}
	}
}

// giveSent puts into the queue what was sent and not acknowledged, of a connection to the outside.
func (n *tcpNode) giveSent() error {
	if !n.outside() {
		return nil
	}
	b := n.data[:n.Conn.SendLen-n.Conn.Unsent]
	back, err := n.roomFor(len(b))
	if err != nil {
		return err
	}
	return errors.Join(n.give(tcpSendQueue, b), back())
}

// goOn lets the packets of the connections to the outside through and has them go on.
func (w *tcpWorld) goOn() error {
	defer w.closeOutside()
	for _, n := range w.order {
		if n.outside() && n.Conn.GotFIN {
			if err := n.hearFIN(); err != nil {
				return fmt.Errorf("%s: the end of what %s sends: %w", n.path, addrText(n.Conn.Peer), err)
			}
		}
	}
	if err := w.lock.Release(); err != nil {
		return err
	}
	for _, n := range w.order {
		if !n.outside() {
			continue
		}
		if err := n.goOn(); err != nil {
			return fmt.Errorf("%s: the connection to %s: %w", n.path, addrText(n.Conn.Peer), err)
		}
	}
	return nil
}

// goOn ends the repair mode of a connection to the outside, which tells the peer how far we are, and
// does what the old one had still to do.
func (n *tcpNode) goOn() error {
	c := n.Conn
	if err := unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR, 0); err != nil {
		return fmt.Errorf("end TCP_REPAIR: %w", err)
	}
	if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, n.reuses()); err != nil { // repair mode has taken it away
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	err := n.sendAll(n.data[c.SendLen-c.Unsent : c.SendLen])
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil // the peer has given up meanwhile; the program will hear of it
	}
	if err != nil {
		return err
	}
	if err := n.shutAsWas(); err != nil && err != unix.ENOTCONN {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}

// sendAll sends bytes, which the send buffer has room for meanwhile.
func (n *tcpNode) sendAll(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	back, err := n.roomFor(len(b))
	if err != nil {
		return err
	}
	for len(b) > 0 {
		k, err := unix.SendmsgN(n.fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err != nil {
			return fmt.Errorf("send %d bytes that had not arrived: %w", len(b), err)
		}
		b = b[k:]
	}
	return back()
}

// roomFor makes the send buffer large enough for so many bytes more. back gives it its size back.
func (n *tcpNode) roomFor(more int) (back func() error, err error) {
	size, err := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return nil, fmt.Errorf("SO_SNDBUF: %w", err)
	}
	lock, err := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err != nil {
		return nil, fmt.Errorf("SO_BUF_LOCK: %w", err)
	}
	if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size+4*more); err != nil {
		return nil, fmt.Errorf("SO_SNDBUFFORCE: %w", err)
	}
	return func() error {
		if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size/2); err != nil {
			return fmt.Errorf("SO_SNDBUFFORCE: %w", err)
		}
		return unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, lock)
	}, nil
}

// hearFIN has a socket hear the FIN that the old one had got: the peer will not send it again.
func (n *tcpNode) hearFIN() error {
	e, c := endsOfConn(n.Name, n.Conn.Peer), n.Conn
	window := min(c.windowField(1)>>c.SndScale, 1<<16-1)
	p := finPacket(e, c.RecvSeq+c.RecvLen, c.SendSeq, uint16(window))
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: e.local.Addr().As16()}
	if e.local.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: e.local.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, netlock.Mark); err != nil {
		return fmt.Errorf("SO_MARK: %w", err)
	}
	if err := unix.Sendto(fd, p, 0, to); err != nil {
		return fmt.Errorf("send it again: %w", err)
	}
	return awaitHangup(n.fd)
}

// finPacket is an IP packet from the peer to us, with a FIN.
func finPacket(e ends, seq, ack uint32, window uint16) []byte {
	const headLen, finACK, hops = 20, 0x11, 64
	be := binary.BigEndian
	t := make([]byte, headLen)
	be.PutUint16(t, e.peer.Port())
	be.PutUint16(t[2:], e.local.Port())
	be.PutUint32(t[4:], seq)
	be.PutUint32(t[8:], ack)
	t[12], t[13] = headLen/4<<4, finACK
	be.PutUint16(t[14:], window)
	src, dst := e.peer.Addr().AsSlice(), e.local.Addr().AsSlice()
	be.PutUint16(t[16:], checksum(src, dst, []byte{0, unix.IPPROTO_TCP, 0, headLen}, t))
	if e.local.Addr().Is6() {
		h := []byte{6 << 4, 0, 0, 0, 0, headLen, unix.IPPROTO_TCP, hops}
		return append(append(append(h, src...), dst...), t...)
	}
	h := make([]byte, headLen)
	h[0], h[8], h[9] = 4<<4|headLen/4, hops, unix.IPPROTO_TCP
	be.PutUint16(h[2:], 2*headLen)
	copy(h[12:], src)
	copy(h[16:], dst)
	be.PutUint16(h[10:], checksum(h))
	return append(h, t...)
}

// checksum is the sum of RFC 1071.
func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts { // all but the last have an even length
		for i := 0; i < len(p); i += 2 {
			v := uint32(p[i]) << 8
			if i+1 < len(p) {
				v |= uint32(p[i+1])
			}
			sum += v
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// onHost checks that an address is one of this host.
func onHost(name []byte) error {
	a := addrPort(name)
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: a.Addr().As16()}
	if a.Addr().Unmap().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: a.Addr().Unmap().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Bind(fd, to)
}
