package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"

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

// peekQuiet reads the connections that are quiet still. Others are left for runPeeks, and all if the memory cannot be
// read.
func (s *Scene) peekQuiet(all []*Found) {
	byStruct := map[string][]*Found{}
	for _, f := range all {
		byStruct[f.known.in] = append(byStruct[f.known.in], f)
	}
	for in, files := range byStruct {
		m := files[0].known.memo.mem
		if tcpProven(m) != nil {
			return
		}
		ask := make([]kmem.Socket, len(files))
		for i, f := range files {
			ask[i] = kmem.Socket{FD: f.FD, Struct: in}
		}
		layout, err := m.TCPLayout(in)
		if err != nil {
			return
		}
		_ = m.EachSocket(ask, func(i int, memory []byte) { // those that it does not come to go the other way
			f := files[i]
			if memory == nil || !bytes.Equal(memory, f.known.memory) {
				return
			}
			t, err := layout.Read(memory)
			if err != nil {
				return
			}
			if q := quietQueues(f.FD, &t); q != nil {
				s.quiet[f] = q
			}
		})
	}
}

// quietQueues is what repair mode would tell of a connection; nil: something waits in it.
func quietQueues(fd int, t *kmem.TCP) *tcpQueues {
	if t.Unacked != t.SendSeq || t.Unread != t.RecvSeq {
		return nil
	}
	time, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP)
	if err != nil {
		return nil
	}
	q := &tcpQueues{sendSeq: t.SendSeq, recvSeq: t.RecvSeq, mss: uint32(t.MSSClamp), time: uint32(time), window: make([]byte, 0, tcpWindowLen)}
	for _, v := range t.Window {
		q.window = binary.NativeEndian.AppendUint32(q.window, v)
	}
	return q
}

var provenTCP struct {
	once sync.Once
	err  error
}

// tcpProven looks at a connection of our own in both ways.
func tcpProven(m *kmem.Memory) error {
	provenTCP.once.Do(func() { provenTCP.err = proveTCP(m) })
	return provenTCP.err
}

func proveTCP(m *kmem.Memory) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)
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
	return errors.Join(sameTCP(m, c), sameTCP(m, a))
}

// sameTCP compares what the memory and repair mode tell of a connection of our own in which nothing waits.
func sameTCP(m *kmem.Memory, fd int) error {
	for range 100 { // the last acknowledgement may be on its way
		p, err := newPeek(fd)
		if err != nil {
			return err
		}
		if err := runPeeks(p); err != nil {
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
		got := quietQueues(fd, &told)
		if got != nil && got.sendSeq == want.sendSeq && got.recvSeq == want.recvSeq && got.mss == want.mss &&
			got.time-want.time < 10_000 && bytes.Equal(got.window, want.window) {
			return nil
		}
	}
	return errors.New("the kernel's memory and the repair mode tell different things of a connection of ours")
}
