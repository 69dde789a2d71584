package kind

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errMoving says that a connection changed while it was looked at.
var errMoving = errors.New("more comes to wait in it while it is looked at")

// stillConn reads a connection at one moment: packets come from outside although the tree stands
// still, until the window is full.
func (s *Scene) stillConn(f *Found) (in tcpInfo, q *tcpQueues, err error) {
	if q := s.quiet[f]; q != nil {
		return f.known.tcp.info, q, nil
	}
	p := s.peeked[f]
	delete(s.peeked, f)
	for try := 0; try < 100; try++ {
		if p == nil {
			if p, err = newPeek(f.FD); err != nil {
				return in, nil, err
			}
			if err := s.runPeeks(p); err != nil {
				return in, nil, err
			}
		}
		if q, err = p.result(); err == nil {
			return p.info, q, nil
		}
		if !errors.Is(err, errMoving) {
			return in, nil, err
		}
		p = nil
	}
	return in, nil, errMoving
}

// What is looked at with one process of runApart.
const (
	peekBatch = 64
	peekBytes = 8 << 20
)

// peekAll looks once at all connections that are kept, those to the outside when their packets are kept away.
func (s *Scene) peekAll() error {
	if s.peeked != nil {
		return nil
	}
	if err := s.hush(); err != nil {
		return err
	}
	s.peeked, s.quiet = map[*Found]*tcpPeek{}, map[*Found]*tcpQueues{}
	s.peekQuiet()
	var batch []*tcpPeek
	size := 0
	for _, f := range s.connected() {
		if s.quiet[f] != nil {
			continue
		}
		f.askAgain()
		in, err := f.tcpInfo()
		if err != nil || in.state == tcpClose || in.state == stateListen {
			continue
		}
		if _, why := f.connection(s, in); why != "" {
			continue
		}
		p, err := newPeek(f.FD)
		if err != nil {
			continue // who dumps it says so
		}
		s.peeked[f] = p
		batch, size = append(batch, p), size+len(p.send)+len(p.recv)
		if len(batch) == peekBatch || size >= peekBytes {
			if err := s.runPeeks(batch...); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
	return s.runPeeks(batch...)
}

// tcpQueues is what a socket tells in repair mode.
type tcpQueues struct {
	sendSeq, recvSeq uint32
	send, recv       []byte
	mss, time        uint32
	window           []byte
}

// tcpPeek is a look at the queues of a connection. What its calls point at lies in one place on the heap,
// see runApart.
type tcpPeek struct {
	fd         int
	info       tcpInfo
	send, recv []byte // room for one byte more than waits
	calls      []call

	on, off, sendQ, recvQ, reuse                        int32
	sendSeq, recvSeq, again, mss, time                  uint32
	lenSend, lenRecv, lenAgain, lenMSS, lenTime, lenWin uint32
	window                                              [tcpWindowLen]byte
}

// newPeek prepares a look; a FIN counts as a byte that waits.
func newPeek(fd int) (*tcpPeek, error) {
	m := &tcpPeek{fd: fd, on: 1, off: -1, sendQ: tcpSendQueue, recvQ: tcpRecvQueue, lenSend: 4, lenRecv: 4, lenAgain: 4, lenMSS: 4, lenTime: 4, lenWin: tcpWindowLen}
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return nil, fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	m.reuse = int32(reuse)
	if m.info, err = readTCPInfo(fd); err != nil {
		return nil, err
	}
	m.send, m.recv = make([]byte, queued(fd, unix.TIOCOUTQ)+1), make([]byte, queued(fd, unix.TIOCINQ)+1)
	at := func(p unsafe.Pointer) uintptr { return uintptr(p) }
	set := func(level, name int, v *int32) call {
		return call{nr: unix.SYS_SETSOCKOPT, args: [6]uintptr{uintptr(fd), uintptr(level), uintptr(name), at(unsafe.Pointer(v)), 4}}
	}
	get := func(name int, v unsafe.Pointer, n *uint32) call {
		return call{nr: unix.SYS_GETSOCKOPT, args: [6]uintptr{uintptr(fd), unix.SOL_TCP, uintptr(name), at(v), at(unsafe.Pointer(n))}}
	}
	peek := func(b []byte) call {
		return call{nr: unix.SYS_RECVFROM, args: [6]uintptr{uintptr(fd), at(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_PEEK | unix.MSG_DONTWAIT}}
	}
	m.calls = []call{
		set(unix.SOL_TCP, unix.TCP_REPAIR, &m.on),
		set(unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, &m.sendQ),
		get(unix.TCP_QUEUE_SEQ, unsafe.Pointer(&m.sendSeq), &m.lenSend),
		peek(m.send),
		set(unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, &m.recvQ),
		get(unix.TCP_QUEUE_SEQ, unsafe.Pointer(&m.recvSeq), &m.lenRecv),
		peek(m.recv),
		get(unix.TCP_QUEUE_SEQ, unsafe.Pointer(&m.again), &m.lenAgain),
		get(unix.TCP_MAXSEG, unsafe.Pointer(&m.mss), &m.lenMSS),
		get(unix.TCP_TIMESTAMP, unsafe.Pointer(&m.time), &m.lenTime),
		get(unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&m.window), &m.lenWin),
		set(unix.SOL_TCP, unix.TCP_REPAIR, &m.off),
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, &m.reuse), // repair mode has taken it away
	}
	return m, nil
}

// Places in tcpPeek.calls.
const (
	peekedSend = 3
	peekedRecv = 6
)

// runPeeks looks.
func (s *Scene) runPeeks(peeks ...*tcpPeek) error {
	var calls []call
	for _, p := range peeks {
		calls = append(calls, p.calls...)
	}
	err := s.runApart(calls)
	runtime.KeepAlive(peeks)
	for _, p := range peeks {
		calls = calls[copy(p.calls, calls):]
	}
	return err
}

// result is what a look has found: errMoving if the connection has changed meanwhile.
func (m *tcpPeek) result() (*tcpQueues, error) {
	q := &tcpQueues{sendSeq: m.sendSeq, recvSeq: m.recvSeq, mss: m.mss, time: m.time, window: append([]byte{}, m.window[:]...)}
	for i := range m.calls {
		err := m.calls[i].err()
		switch {
		case i == peekedSend || i == peekedRecv: // nothing there, or only a FIN
			b, got := m.send, &q.send
			if i == peekedRecv {
				b, got = m.recv, &q.recv
			}
			if err != nil && err != unix.EAGAIN && err != unix.ENOTCONN {
				return nil, fmt.Errorf("look at what waits in it: %w", err)
			}
			*got = b[:max(m.calls[i].ret, 0)]
			if len(*got) == len(b) {
				return nil, errMoving
			}
		case err == unix.EPERM:
			return nil, fmt.Errorf("repair mode (TCP_REPAIR) needs CAP_NET_ADMIN: %w", err)
		case err != nil:
			return nil, fmt.Errorf("call %d in repair mode: %w", i, err)
		}
	}
	after, err := readTCPInfo(m.fd)
	if err != nil {
		return nil, err
	}
	if m.again != m.recvSeq || after.state != m.info.state {
		return nil, errMoving
	}
	return q, nil
}
