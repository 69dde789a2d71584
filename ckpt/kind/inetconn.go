package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// TCP connections whose two ends are in the tree, or whose other end no process has any more, and by the
// policy tcp=keep those to somebody outside. What the kernel tells of them it tells in the repair mode
// of a socket (TCP_REPAIR), see readConn; how they are made again stands in inetrepair.go and inetkeep.go.

// tcpConn is a connection, in the record of one of its ends. Sequence numbers do not count a FIN.
type tcpConn struct {
	Peer     []byte `cbor:"1,keyasint"` // struct sockaddr of the other end
	SendSeq  uint32 `cbor:"2,keyasint"` // of the first byte that waits to be sent or acknowledged
	SendLen  uint32 `cbor:"3,keyasint"`
	RecvSeq  uint32 `cbor:"4,keyasint"` // of the first byte that waits to be read
	RecvLen  uint32 `cbor:"5,keyasint"`
	MSS      uint32 `cbor:"6,keyasint"`
	SndScale uint8  `cbor:"7,keyasint"`
	RcvScale uint8  `cbor:"8,keyasint"`
	Options  uint8  `cbor:"9,keyasint"`  // tcpi_options
	Time     uint32 `cbor:"10,keyasint"` // TCP_TIMESTAMP
	Window   []byte `cbor:"11,keyasint"` // struct tcp_repair_window
	SentFIN  bool   `cbor:"12,keyasint,omitempty"`
	GotFIN   bool   `cbor:"13,keyasint,omitempty"`
	ShutRead bool   `cbor:"14,keyasint,omitempty"` // by shutdown(2)
	Orphan   bool   `cbor:"15,keyasint,omitempty"` // no process has the other end
	Outside  bool   `cbor:"16,keyasint,omitempty"` // somebody outside the tree has it
	Unsent   uint32 `cbor:"17,keyasint,omitempty"` // of SendLen, the last ones: those that were never sent
	// Waits: the other end waits to be accepted by a socket of the tree, as the Waits-th. What has come there is in SendLen.
	Waits uint32 `cbor:"18,keyasint,omitempty"`
}

// More of linux/tcp_states.h.
const (
	tcpNewSynRecv = 12
	tcpFinWait1   = 4
	tcpCloseWait  = 8
	tcpLastAck    = 9
	tcpClosing    = 11
)

const (
	tcpRecvQueue = 1 // of linux/tcp.h
	tcpSendQueue = 2

	tcpWindowLen = 20       // struct tcp_repair_window
	maxTCPQueue  = 64 << 20 // bytes of one queue
	minMSS       = 1
)

// ends is the pair of addresses of a connection, as one end sees it.
type ends struct{ local, peer netip.AddrPort }

func (e ends) turned() ends { return ends{e.peer, e.local} }

func endsOfConn(name, peer []byte) ends {
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	return ends{unmap(addrPort(name)), unmap(addrPort(peer))}
}

// connEnds returns the addresses of a connected socket.
func (f *Found) connEnds() (e ends, peer []byte, err error) {
	name, err := f.sockAddr(unix.SYS_GETSOCKNAME)
	if err != nil {
		return e, nil, err
	}
	if peer, err = f.sockAddr(unix.SYS_GETPEERNAME); err != nil {
		return e, nil, err
	}
	return endsOfConn(name, peer), peer, nil
}

// connected finds the connections of the tree, by their ends.
func (s *Scene) connected() map[ends]*Found {
	if s.conns == nil {
		s.conns = map[ends]*Found{}
		for _, f := range s.Files {
			if !(inetSock{}).Match(f) || f.ofInet().typ != unix.SOCK_STREAM {
				continue
			}
			if e, _, err := f.connEnds(); err == nil {
				s.conns[e] = f
			}
		}
	}
	return s.conns
}

// otherEnd is where the other end of a connection is.
type otherEnd int

const (
	inTree  otherEnd = iota
	nowhere          // no process has it any more
	outside
)

// otherSide is what findOtherEnd has found.
type otherSide struct {
	at  otherEnd
	why string
}

// otherEnd finds the other end of a connection. why says why it cannot be kept, or not unless the
// policy is tcp=keep.
func (f *Found) otherEnd(s *Scene, protocol int) (at otherEnd, why string) {
	if f.end == nil {
		at, why := f.findOtherEnd(s, protocol)
		f.end = &otherSide{at, why}
	}
	return f.end.at, f.end.why
}

func (f *Found) findOtherEnd(s *Scene, protocol int) (at otherEnd, why string) {
	e, _, err := f.connEnds()
	if err != nil {
		return inTree, "its other end cannot be seen"
	}
	if protocol != unix.IPPROTO_TCP {
		return inTree, fmt.Sprintf("it is connected to %s by MPTCP", e.peer)
	}
	if s.connected()[e.turned()] != nil {
		return inTree, ""
	}
	lines, err := s.tcpLines()
	if err != nil {
		return inTree, err.Error()
	}
	if l, ok := lines[e.turned()]; ok {
		switch {
		case l.inode == 0 && (l.state == tcpEstablished || l.state == tcpCloseWait) && s.keptWaiting(e) != nil:
			return inTree, ""
		case l.inode == 0 && (l.state == tcpEstablished || l.state == tcpCloseWait):
			return inTree, fmt.Sprintf("it is connected to %s, where it waits to be accepted", e.peer)
		case l.inode == 0 && (l.state == tcpSynRecv || l.state == tcpNewSynRecv): // TCP_DEFER_ACCEPT
			return inTree, fmt.Sprintf("it is connected to %s, which takes it for a connection when data comes (TCP_DEFER_ACCEPT) or its last packet", e.peer)
		case l.inode == 0:
			return nowhere, ""
		}
		if s.Policy.Get("tcp") == "keep" {
			return outside, "it is connected to the outside" // whoever that is
		}
		if pid := s.holderOf(l.inode); pid != 0 {
			return outside, fmt.Sprintf("it is connected to %s of %s, which is outside the tree", e.peer, processName(pid))
		}
		return outside, fmt.Sprintf("it is connected to %s, a socket of this machine that is in no process of the tree", e.peer)
	}
	if e.peer.Addr() == e.local.Addr() || e.peer.Addr().IsLoopback() {
		return nowhere, ""
	}
	return outside, fmt.Sprintf("it is connected to %s, which is outside the tree", e.peer)
}

// tcpLines are all TCP sockets of the network namespace, as they were when they were asked for first.
func (s *Scene) tcpLines() (map[ends]inetLine, error) {
	if s.lines == nil {
		all, err := liveTCP()
		if err != nil {
			return nil, err
		}
		s.lines = make(map[ends]inetLine, len(all))
		for _, l := range all {
			if old := s.lines[l.ends()]; old.inode == 0 {
				s.lines[l.ends()] = l
			}
		}
	}
	return s.lines, nil
}

// holderOf returns the pid of a process that has the socket with such an inode, or 0.
func (s *Scene) holderOf(inode uint64) int {
	if s.holdersOf == nil {
		s.holdersOf = map[uint64]int{}
		eachLink(func(pid int, link string) bool {
			if n, ok := strings.CutPrefix(link, "socket:["); ok {
				if ino, err := strconv.ParseUint(strings.TrimSuffix(n, "]"), 10, 64); err == nil {
					s.holdersOf[ino] = pid
				}
			}
			return true
		})
	}
	return s.holdersOf[inode]
}

// awkwardConn tells what of a connection cannot be kept although both ends are in the tree, or "".
func awkwardConn(fd int) string {
	ready, err := polled(fd, unix.POLLPRI)
	switch {
	case err != nil:
		return err.Error()
	case ready&unix.POLLPRI != 0:
		return "urgent data waits in it"
	case ready&unix.POLLERR != 0:
		return "an error waits to be reported by it"
	case queued(fd, unix.TIOCOUTQ) > maxTCPQueue || queued(fd, unix.TIOCINQ) > maxTCPQueue:
		return "more than 64 MiB wait in it"
	}
	return ""
}

// queued is how many bytes wait in a socket.
func queued(fd int, what uint) int {
	n, err := unix.IoctlGetInt(fd, what)
	if err != nil {
		return 0
	}
	return n
}

// readConn reads a connection. Its socket is in repair mode meanwhile, for some microseconds; what
// puts it there also takes it out again if we are killed. data is what waits to be sent, and then
// what waits to be read.
func (r *inetRec) readConn(f *Found, s *Scene) (data []byte, err error) {
	c := &tcpConn{}
	if c.Peer, err = f.sockAddr(unix.SYS_GETPEERNAME); err != nil {
		return nil, err
	}
	in, q, err := s.stillConn(f)
	if err != nil {
		return nil, err
	}
	c.Options, c.SndScale, c.RcvScale = in.options, in.sndScale, in.rcvScale
	c.SentFIN = in.state == tcpFinWait1 || in.state == tcpFinWait2 || in.state == tcpClosing || in.state == tcpLastAck
	c.GotFIN = in.state == tcpCloseWait || in.state == tcpLastAck || in.state == tcpClosing
	ready, err := f.polled(unix.POLLRDHUP)
	if err != nil {
		return nil, err
	}
	c.ShutRead = ready&unix.POLLRDHUP != 0 && !c.GotFIN
	sent, received := q.sendSeq, q.recvSeq // behind the last byte
	if c.SentFIN {
		sent--
	}
	if c.GotFIN {
		received--
	}
	c.SendLen, c.RecvLen = uint32(len(q.send)), uint32(len(q.recv))
	c.SendSeq, c.RecvSeq = sent-c.SendLen, received-c.RecvLen
	if c.SendLen > 0 {
		c.Unsent = min(uint32(queued(f.FD, siocOutQNSD)), c.SendLen)
	}
	c.MSS, c.Time, c.Window = q.mss, q.time, q.window
	r.Conn = c
	return append(q.send, q.recv...), nil
}

// siocOutQNSD is SIOCOUTQNSD of linux/sockios.h: how many bytes were never sent.
const siocOutQNSD = 0x894b

// gap refuses a pair of ends that were not read at one moment: bytes that neither has.
func (s *Scene) gap(f *Found, r *inetRec) error {
	if s.conned == nil {
		s.conned = map[ends]*inetRec{}
	}
	e := endsOfConn(r.Name, r.Conn.Peer)
	s.conned[e] = r
	other := s.conned[e.turned()]
	if other == nil || joins(r.Conn, other.Conn) && joins(other.Conn, r.Conn) {
		return nil
	}
	return &image.RefusedError{Findings: []image.Finding{f.refuse(fmt.Sprintf("data was on its way from it to %s while they were looked at", e.peer), "try again")}}
}

// joins reports whether what a has yet to send begins where b's received bytes end, or before.
func joins(a, b *tcpConn) bool {
	at := int32(b.RecvSeq + b.RecvLen - a.SendSeq)
	return at >= 0 && uint32(at) <= a.SendLen
}

// validConn checks a connection from an image.
func (r *inetRec) validConn() error {
	c := r.Conn
	switch {
	case c == nil:
		return nil
	case r.Type != unix.SOCK_STREAM || r.Protocol != unix.IPPROTO_TCP || r.Listening || r.Ended != 0 || len(r.Name) == 0 || len(c.Peer) == 0:
		return errors.New("it cannot be connected and what else it is")
	case c.SendLen > maxTCPQueue || c.RecvLen > maxTCPQueue:
		return fmt.Errorf("%d and %d bytes wait in it", c.SendLen, c.RecvLen)
	case c.SndScale > 14 || c.RcvScale > 14: // TCP_MAX_WSCALE of net/tcp.h
		return fmt.Errorf("its windows have the scales %d and %d", c.SndScale, c.RcvScale)
	case c.Waits > 0 && (c.Waits > 1<<20 || c.Outside || c.Orphan || c.GotFIN || c.RecvLen > 0):
		return errors.New("it cannot wait to be accepted")
	case c.Outside && c.Orphan || c.Unsent > c.SendLen:
		return errors.New("it cannot be both what it is")
	case c.MSS < minMSS || c.MSS > 1<<16:
		return fmt.Errorf("its segments have %d bytes", c.MSS)
	case len(c.Window) != tcpWindowLen:
		return fmt.Errorf("its window has %d bytes", len(c.Window))
	}
	return r.validAddr(c.Peer)
}

// windowField is a field of struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
func (c *tcpConn) windowField(i int) uint32 { return binary.NativeEndian.Uint32(c.Window[4*i:]) }
