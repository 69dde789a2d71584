package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"golang.org/x/sys/unix"
)

// tcpWorld makes the TCP sockets of an image that has connections, all at once:
//
//  1. What lingers of the old connections is ended, and the sockets that listen or are bound are made.
//     Connections that wait to be accepted are made as at the first time (inetqueue.go).
//  2. Each end is made in repair mode: bound, connected without a packet, with what waits to be read.
//     It begins to send where the other end's received bytes stop.
//  3. Repair mode ends. What waits to be sent is sent, to the other end, which is there by now; then
//     the ends that were shut down are.
//
// In the place of an other end that nobody has, one is made, and closed again.
type tcpWorld struct {
	e     *Env
	nodes map[image.ObjRef]*tcpNode
	order []*tcpNode
	lock  *netlock.Lock // of connections to the outside
}

// tcpNode is one socket.
type tcpNode struct {
	*inetRec
	path string
	data []byte   // what waits to be sent, then what waits to be read
	fd   int      // ours
	peer *tcpNode // nil: it is no connection
	temp bool     // an other end that nobody has
	gate *tcpNode // who has yet to accept it; nil: nobody has to

	queued uint32 // how many have connected to it
}

// refOf finds the reference of a record.
func refOf(e *Env, rec *image.File) image.ObjRef {
	for i := range e.Manifest.Files {
		if &e.Manifest.Files[i] == rec {
			return image.ObjRef(i + 1)
		}
	}
	return 0
}

// readTCPWorld reads the records; nil: there is no connection among them.
func readTCPWorld(e *Env) (*tcpWorld, error) {
	w := &tcpWorld{e: e, nodes: map[image.ObjRef]*tcpNode{}}
	byEnds, any := map[ends]*tcpNode{}, false
	for i := range e.Manifest.Files {
		rec := &e.Manifest.Files[i]
		if rec.Kind != (inetSock{}).Name() {
			continue
		}
		r, err := inetRecord(rec)
		if err != nil {
			return nil, err
		}
		if r.Type != unix.SOCK_STREAM {
			continue
		}
		n := &tcpNode{inetRec: r, path: rec.Path, fd: -1}
		w.nodes[image.ObjRef(i+1)], w.order = n, append(w.order, n)
		if r.Conn == nil {
			if err := r.loadUnread(rec, e); err != nil {
				return nil, err
			}
			continue
		}
		any = true
		if rec.Blob != 0 {
			if n.data, err = e.Blob(rec.Blob); err != nil {
				return nil, err
			}
		}
		if uint64(len(n.data)) != uint64(r.Conn.SendLen)+uint64(r.Conn.RecvLen) {
			return nil, fmt.Errorf("%s: %d bytes wait in it, the image has %d", rec.Path, uint64(r.Conn.SendLen)+uint64(r.Conn.RecvLen), len(n.data))
		}
		at := endsOfConn(r.Name, r.Conn.Peer)
		if byEnds[at] != nil {
			return nil, fmt.Errorf("%s: the image has two connections from %s to %s", rec.Path, at.local, at.peer)
		}
		byEnds[at] = n
	}
	if !any {
		return nil, nil
	}
	return w, w.pair(byEnds)
}

// pair finds the other end of each connection.
func (w *tcpWorld) pair(byEnds map[ends]*tcpNode) error {
	for _, n := range w.order {
		if n.Conn == nil {
			continue
		}
		at := endsOfConn(n.Name, n.Conn.Peer)
		n.peer = byEnds[at.turned()]
		switch {
		case n.Conn.Outside && n.peer != nil:
			return fmt.Errorf("%s: both ends of the connection to %s are in the image, and one is outside", n.path, at.peer)
		case n.Conn.Outside:
		case n.Conn.Waits > 0:
			if n.peer != nil {
				return fmt.Errorf("%s: both ends of the connection to %s are in the image, and one waits to be accepted", n.path, at.peer)
			}
			if n.gate = w.gateOf(at.peer); n.gate == nil {
				return fmt.Errorf("%s: the image has no socket that listens on %s", n.path, at.peer)
			}
		case n.peer == nil && !n.Conn.Orphan:
			return fmt.Errorf("%s: the image does not have the other end of the connection to %s", n.path, at.peer)
		case n.peer == nil:
			n.peer = n.stranger()
			w.order = append(w.order, n.peer)
		case !joins(n.Conn, n.peer.Conn):
			return fmt.Errorf("%s: the two ends of the connection to %s do not fit together", n.path, at.peer)
		}
	}
	return nil
}

// stranger is an other end that nobody has: it has sent all and received all.
func (n *tcpNode) stranger() *tcpNode {
	c := *n.Conn
	c.Peer, c.SendSeq, c.SendLen = n.Name, n.Conn.RecvSeq+n.Conn.RecvLen, 0
	c.RecvSeq, c.RecvLen = n.Conn.SendSeq, 0
	c.SndScale, c.RcvScale = n.Conn.RcvScale, n.Conn.SndScale
	c.SentFIN, c.GotFIN, c.ShutRead = false, false, false
	wnd := max(n.Conn.windowField(1), 1)
	c.Window = binary.NativeEndian.AppendUint32(nil, c.RecvSeq)
	for _, v := range []uint32{wnd, wnd, wnd, c.RecvSeq} {
		c.Window = binary.NativeEndian.AppendUint32(c.Window, v)
	}
	return &tcpNode{inetRec: &inetRec{Family: n.Family, Type: n.Type, Protocol: n.Protocol, Name: n.Conn.Peer, Conn: &c}, path: n.path, fd: -1, peer: n, temp: true}
}

// makeTCPWorld makes all TCP sockets; nil: there is no connection among them.
func makeTCPWorld(e *Env) (*tcpWorld, error) {
	w, err := readTCPWorld(e)
	if w == nil || err != nil {
		return nil, err
	}
	w.sortWaiting()
	if err := w.hush(); err != nil {
		return nil, err
	}
	if err := w.clear(); err != nil {
		return nil, err
	}
	for i, step := range [...]func(n *tcpNode) error{w.simple, w.queueUp, w.connect, w.wake, w.send, w.shut, w.settle} {
		for _, n := range w.order {
			if n.outside() && i >= 3 && i <= 5 {
				continue // in the end, see goOn
			}
			if err := step(n); err != nil {
				return nil, errors.Join(fmt.Errorf("%s: %w", n.path, err), w.Close(), w.forget())
			}
		}
	}
	if w.lock != nil {
		e.Undo(w.forget)
		e.Last(w.goOn)
	}
	return w, nil
}

// Close closes our descriptors.
func (w *tcpWorld) Close() error {
	if w == nil { // no connections
		return nil
	}
	for _, n := range w.order {
		if n.fd >= 0 && !n.outside() {
			unix.Close(n.fd) // the processes have theirs, or nobody is to have it
			n.fd = -1
		}
	}
	return nil
}

// clear ends what lingers of the old connections: their processes were killed. Who still has one is
// in the way.
func (w *tcpWorld) clear() error {
	mine := map[ends]bool{}
	for _, n := range w.order {
		if n.Conn != nil {
			at := endsOfConn(n.Name, n.Conn.Peer)
			mine[at] = true
			if !n.outside() {
				mine[at.turned()] = true
			}
		}
	}
	lines, err := inetLines("tcp", "tcp6")
	if err != nil {
		return err
	}
	for _, l := range lines {
		at := l.ends()
		switch {
		case !mine[at]:
		case l.inode != 0:
			return &addressTaken{addr: at.local.String(), pid: holderOfLink(map[string]bool{fmt.Sprintf("socket:[%d]", l.inode): true}), err: unix.EADDRINUSE}
		default:
			if err := destroySocket(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// simple makes a socket that is no connection.
func (w *tcpWorld) simple(n *tcpNode) (err error) {
	if n.Conn == nil {
		n.fd, err = n.make()
	}
	return err
}

// connect makes one end, still in repair mode.
func (w *tcpWorld) connect(n *tcpNode) (err error) {
	if n.Conn == nil || n.gate != nil {
		return nil
	}
	if n.fd, err = unix.Socket(int(n.Family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := setOpts(n.fd, n.Opts, optEarly); err != nil {
		w.e.Warn("the TCP socket from %s: %v", addrText(n.Name), err) // see finish
	}
	c := n.Conn
	steps := []struct {
		what string
		do   func() error
	}{
		{"TCP_REPAIR", func() error { return unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR, 1) }},
		{"bind", func() error { return addressed(unix.SYS_BIND, n.fd, n.Name) }},
		{"sequence number to send", func() error { return n.seq(tcpSendQueue, n.sendFrom()) }},
		{"sequence number to receive", func() error { return n.seq(tcpRecvQueue, c.RecvSeq) }},
		{"connect", func() error { return addressed(unix.SYS_CONNECT, n.fd, c.Peer) }},
		{"TCP_REPAIR_OPTIONS", n.repairOptions},
		{"TCP_TIMESTAMP", func() error { return unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_TIMESTAMP, int(int32(c.Time))) }},
		{"what waits to be read", func() error { return n.give(tcpRecvQueue, n.data[c.SendLen:]) }},
		{"what was sent and is not acknowledged", n.giveSent},
		{"TCP_REPAIR_WINDOW", n.window},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("make the connection from %s to %s: %s: %w", addrText(n.Name), addrText(c.Peer), s.what, err)
		}
	}
	return nil
}

// seq sets the next sequence number of a queue.
func (n *tcpNode) seq(queue int, seq uint32) error {
	if err := unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return err
	}
	return unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ, int(int32(seq)))
}

// repairOptions sets what the two ends have agreed on: struct tcp_repair_opt of linux/tcp.h.
func (n *tcpNode) repairOptions() error {
	const tcpiTimestamps, tcpiSACK, tcpiScale = 1, 2, 4
	const optMSS, optWindow, optSACK, optTimestamp = 2, 3, 4, 8
	ne := binary.NativeEndian
	b := ne.AppendUint32(ne.AppendUint32(nil, optMSS), n.Conn.MSS)
	if n.Conn.Options&tcpiScale != 0 {
		b = ne.AppendUint32(ne.AppendUint32(b, optWindow), uint32(n.Conn.SndScale)|uint32(n.Conn.RcvScale)<<16)
	}
	if n.Conn.Options&tcpiSACK != 0 {
		b = ne.AppendUint32(ne.AppendUint32(b, optSACK), 0)
	}
	if n.Conn.Options&tcpiTimestamps != 0 {
		b = ne.AppendUint32(ne.AppendUint32(b, optTimestamp), 0)
	}
	return rawSetOpt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR_OPTIONS, b)
}

// give puts bytes into a queue.
func (n *tcpNode) give(queue int, b []byte) error {
	if err := unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return err
	}
	for len(b) > 0 {
		k, err := unix.SendmsgN(n.fd, b[:min(len(b), 64<<10)], nil, nil, 0)
		if err != nil {
			return fmt.Errorf("%d bytes are left: %w", len(b), err)
		}
		b = b[k:]
	}
	return nil
}

// window sets the windows as they were, as far as they still fit to the sequence numbers.
func (n *tcpNode) window() error {
	b := append([]byte{}, n.Conn.Window...)
	ne := binary.NativeEndian
	received := n.Conn.RecvSeq + n.Conn.RecvLen
	if wl1 := n.Conn.windowField(0); int32(wl1-(received+n.Conn.windowField(3))) > 0 {
		ne.PutUint32(b, received)
	}
	if wup := n.Conn.windowField(4); int32(wup-received) > 0 { // it counts a FIN
		ne.PutUint32(b[16:], received)
	}
	return rawSetOpt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, b)
}

// wake ends the repair mode of an end.
func (w *tcpWorld) wake(n *tcpNode) error {
	if n.Conn == nil || n.gate != nil {
		return nil
	}
	const silently = -1 // TCP_REPAIR_OFF_NO_WP
	if err := unix.SetsockoptInt(n.fd, unix.SOL_TCP, unix.TCP_REPAIR, silently); err != nil {
		return fmt.Errorf("end TCP_REPAIR: %w", err)
	}
	return nil
}

// send sends what the other end does not have yet.
func (w *tcpWorld) send(n *tcpNode) error {
	if n.Conn == nil || n.temp || n.gate != nil {
		return nil
	}
	have := n.peer.Conn.RecvSeq + n.peer.Conn.RecvLen - n.Conn.SendSeq
	return n.sendAll(n.data[have:n.Conn.SendLen])
}

// shut shuts an end down as it was.
func (w *tcpWorld) shut(n *tcpNode) error {
	c := n.Conn
	switch {
	case c == nil || n.gate != nil:
		return nil
	case n.temp && n.peer.Conn.GotFIN:
		err := unix.Shutdown(n.fd, unix.SHUT_WR)
		if err != nil {
			return fmt.Errorf("shutdown: %w", err)
		}
		return awaitHangup(n.peer.fd)
	case c.SentFIN:
		if err := unix.Shutdown(n.fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("shutdown: %w", err)
		}
		if n.peer.Conn.GotFIN && len(n.data[:c.SendLen]) == 0 {
			if err := awaitHangup(n.peer.fd); err != nil {
				return err
			}
		}
	}
	if c.ShutRead {
		if err := unix.Shutdown(n.fd, unix.SHUT_RD); err != nil {
			return fmt.Errorf("shutdown: %w", err)
		}
	}
	return nil
}

// awaitHangup waits until the end of the other side has come through the loopback device.
func awaitHangup(fd int) error {
	for range 1000 {
		ready, err := polled(fd, unix.POLLRDHUP)
		if err != nil || ready&unix.POLLRDHUP != 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the end of the other side does not arrive; a firewall on the loopback device may be in the way")
}

// settle sets the rest.
func (w *tcpWorld) settle(n *tcpNode) error {
	if n.temp {
		return nil
	}
	return n.finish(n.fd, w.e.Warn)
}
