package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// What TCP connections tell in repair mode takes some forty microseconds each, and a server may have thousands
// of them, nearly all quiet: established, with nothing under way, and as the look has found them. Of those
// the kernel's memory tells the same, many at once. That it does is proven first on two sockets of our own.

// quietTCP is what a look has found of a TCP socket, which depends on the memory of the socket alone.
type quietTCP struct {
	info  tcpInfo
	quiet bool // an established connection in which nothing waits, in neither direction
}

func lookTCP(fd int) (q *quietTCP, ready int16, err error) {
	q = &quietTCP{}
	if q.info, err = readTCPInfo(fd); err != nil {
		return nil, 0, err
	}
	if ready, err = polled(fd, sockPoll); err != nil {
		return nil, 0, err
	}
	q.quiet = q.info.state == tcpEstablished && ready == 0 && queued(fd, unix.TIOCOUTQ) == 0 && queued(fd, unix.TIOCINQ) == 0
	return q, ready, nil
}

// tcpInfo is TCP_INFO.
func (f *Found) tcpInfo() (tcpInfo, error) {
	if f.known != nil && f.known.tcp != nil {
		return f.known.tcp.info, nil
	}
	return readTCPInfo(f.FD)
}

// quiet reports whether f is a connection that was quiet in the look, and had not changed when the tree stood still.
func (f *Found) quiet() bool { return f.known != nil && f.known.tcp != nil && f.known.tcp.quiet }

// askAgain forgets what a look has found that packets of somebody outside may have changed since.
func (f *Found) askAgain() {
	if f.known != nil && f.known.tcp != nil {
		now := *f.known
		now.tcp = nil
		f.known = &now
	}
}

// peekQuiet reads the connections that are quiet still. Others are left for runPeeks, and all if the memory cannot be
// read.
func (s *Scene) peekQuiet() {
	byStruct := map[string][]*Found{}
	for _, f := range s.connected() {
		if f.quiet() && f.known.memo.tcp {
			byStruct[f.known.in] = append(byStruct[f.known.in], f)
		}
	}
	for in, files := range byStruct {
		layout, err := files[0].known.memo.mem.TCPLayout(in)
		if err != nil {
			return
		}
		known := make([][]byte, len(files))
		for i, f := range files {
			known[i] = f.known.memory
		}
		clock := tcpClock{}
		_ = layout.Again(known, func(i int, t kmem.TCP) { // those that it does not come to go the other way
			if q := quietQueues(files[i].FD, &t, &clock); q != nil {
				s.quiet[files[i]] = q
			}
		})
	}
}

// tcpClock is the clock of the timestamps of connections, which one of them has been asked for.
type tcpClock struct {
	now   uint32 // without the offset of a connection, milliseconds
	since time.Time
}

// of is TCP_TIMESTAMP of a connection. Since Linux 6.7 its lowest bit tells the unit, so it may be a millisecond
// or two too late here, but never earlier than the kernel itself tells: a peer would take that for an old packet.
func (c *tcpClock) of(fd int, t *kmem.TCP) (uint32, error) {
	if !t.Micro && time.Since(c.since) < time.Millisecond {
		return (c.now + t.TimeOff + 1) &^ 1, nil
	}
	v, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP)
	if err == nil && !t.Micro {
		c.now, c.since = (uint32(v)|1)-t.TimeOff, time.Now()
	}
	return uint32(v), err
}

// quietQueues is what repair mode would tell of a connection; nil: something waits in it.
func quietQueues(fd int, t *kmem.TCP, clock *tcpClock) *tcpQueues {
	if t.Unacked != t.SendSeq || t.Unread != t.RecvSeq {
		return nil
	}
	now, err := clock.of(fd, t)
	if err != nil {
		return nil
	}
	q := &tcpQueues{sendSeq: t.SendSeq, recvSeq: t.RecvSeq, mss: uint32(t.MSSClamp), time: now, window: make([]byte, 0, tcpWindowLen)}
	for _, v := range t.Window {
		q.window = binary.NativeEndian.AppendUint32(q.window, v)
	}
	return q
}

// provenTCP says that the memory tells of TCP what repair mode does.
var provenTCP atomic.Bool

// proveTCP looks at a connection of our own in both ways, the first time. It is for a look: it may wait, half a second
// if a firewall is on the loopback device.
func proveTCP(m *kmem.Memory) error {
	if provenTCP.Load() {
		return nil
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)
	patience := unix.Timeval{Usec: 100_000} // for accept(2), and for recv(2) of what it returns
	if err := unix.SetsockoptTimeval(l, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1)); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil { // also for connect(2)
		return err
	}
	if err := unix.Connect(c, to); err != nil {
		return err
	}
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b := make([]byte, 1234)
	if _, err := unix.Write(c, b); err != nil {
		return err
	}
	if _, _, err := unix.Recvfrom(a, b, unix.MSG_WAITALL); err != nil {
		return err
	}
	if err := errors.Join(sameTCP(m, c), sameTCP(m, a)); err != nil {
		return err
	}
	provenTCP.Store(true)
	return nil
}

// sameTCP compares what the memory and repair mode tell of a connection of our own in which nothing waits.
func sameTCP(m *kmem.Memory, fd int) error {
	clock := tcpClock{}
	for try := range 100 { // the last acknowledgement may be on its way
		if try > 0 {
			time.Sleep(time.Millisecond)
		}
		p, err := newPeek(fd)
		if err != nil {
			return err
		}
		if err := (&Scene{}).runPeeks(p); err != nil {
			return err
		}
		want, err := p.result()
		if err != nil {
			continue
		}
		memory, err := m.Sockets([]kmem.Socket{{FD: fd, Struct: "tcp_sock"}})
		if err != nil {
			return err
		}
		if memory[0] == nil {
			return errors.New("the kernel keeps more of a socket of ours elsewhere")
		}
		layout, err := m.TCPLayout("tcp_sock")
		if err != nil {
			return err
		}
		told, err := layout.Read(memory[0])
		if err != nil {
			return err
		}
		got := quietQueues(fd, &told, &clock)
		if got != nil && got.sendSeq == want.sendSeq && got.recvSeq == want.recvSeq && got.mss == want.mss &&
			got.time-want.time+3 < 10_000 && bytes.Equal(got.window, want.window) {
			return nil
		}
	}
	return errors.New("the kernel's memory and the repair mode tell different things of a connection of ours")
}
