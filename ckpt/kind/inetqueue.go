package kind

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// gateOf finds the socket of the image that listens on an address.
func (w *tcpWorld) gateOf(at netip.AddrPort) *tcpNode {
	var anyAddr *tcpNode
	for _, n := range w.order {
		if !n.Listening || len(n.Name) == 0 {
			continue
		}
		switch name := addrPort(n.Name); {
		case name.Port() != at.Port():
		case name.Addr().Unmap() == at.Addr():
			return n
		case name.Addr().IsUnspecified():
			anyAddr = n
		}
	}
	return anyAddr
}

// sortWaiting has the connections that wait to be accepted made in the order of their queues.
func (w *tcpWorld) sortWaiting() {
	place := func(n *tcpNode) uint32 {
		if n.Conn == nil {
			return 0
		}
		return n.Conn.Waits
	}
	slices.SortStableFunc(w.order, func(a, b *tcpNode) int { return int(place(a)) - int(place(b)) })
}

// queueUp makes a connection that waits to be accepted: it connects, and sends what was sent.
func (w *tcpWorld) queueUp(n *tcpNode) (err error) {
	if n.gate == nil {
		return nil
	}
	if n.fd, err = unix.Socket(int(n.Family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := setOpts(n.fd, n.Opts, optEarly); err != nil {
		w.e.Warn("the TCP socket from %s: %v", addrText(n.Name), err) // see finish
	}
	n.gate.queued++
	steps := []struct {
		what string
		do   func() error
	}{
		{"bind", func() error { return bindShared(n.fd, n.Name) }},
		{"connect", n.connectNow},
		{"send what was sent", func() error { return n.sendAll(n.data) }},
		{"shutdown", n.shutAsWas},
		{"have it wait to be accepted", n.gate.awaitQueue},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("connect from %s to %s, where it waited to be accepted: %s: %w", addrText(n.Name), addrText(n.Conn.Peer), s.what, err)
		}
	}
	return nil
}

// bindShared binds to an address that other sockets may have, too: connect(2) had chosen it, which shares ports
// between connections. In repair mode bind(2) does.
func bindShared(fd int, name []byte) error {
	const off = -1 // TCP_REPAIR_OFF_NO_WP
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1); err != nil {
		return fmt.Errorf("TCP_REPAIR: %w", err)
	}
	err := addressed(unix.SYS_BIND, fd, name)
	if oerr := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, off); err == nil && oerr != nil {
		err = fmt.Errorf("end TCP_REPAIR: %w", oerr)
	}
	return err
}

// connectNow connects to a socket on the same host.
func (n *tcpNode) connectNow() error {
	err := addressed(unix.SYS_CONNECT, n.fd, n.Conn.Peer)
	if err != unix.EINPROGRESS {
		return err
	}
	for range 1000 {
		ready, err := polled(n.fd, unix.POLLOUT)
		if err != nil {
			return err
		}
		if ready != 0 {
			code, err := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return unix.ETIMEDOUT
}

// shutAsWas shuts down what the record says.
func (n *tcpNode) shutAsWas() error {
	how := -1
	switch c := n.Conn; {
	case c.SentFIN && c.ShutRead:
		how = unix.SHUT_RDWR
	case c.SentFIN:
		how = unix.SHUT_WR
	case c.ShutRead:
		how = unix.SHUT_RD
	default:
		return nil
	}
	return unix.Shutdown(n.fd, how)
}

// awaitQueue waits until all that have connected stand in the queue of a listening socket. Otherwise their order
// might not be kept, or one be forgotten.
func (n *tcpNode) awaitQueue() error {
	waiting := uint32(0)
	for range 1000 {
		in, err := readTCPInfo(n.fd)
		if err != nil {
			return err
		}
		if waiting = in.waiting; waiting == n.queued {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%d of %d connections are there after a second; a firewall on the loopback device may be in the way", waiting, n.queued)
}
