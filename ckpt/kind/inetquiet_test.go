package kind

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// loopPair is a TCP connection between two sockets of ours.
func loopPair(t *testing.T, to unix.Sockaddr) [2]int {
	t.Helper()
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	socket := func() int {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	l, c := socket(), socket()
	must(t, unix.Bind(l, to))
	must(t, unix.Listen(l, 1))
	name, err := unix.Getsockname(l)
	must(t, err)
	must(t, unix.Connect(c, name))
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(a) })
	return [2]int{c, a}
}

// TestQuietConnections compares what the kernel's memory and the repair mode tell, and changes connections after they
// were read.
func TestQuietConnections(t *testing.T) {
	m, err := kmem.Open()
	must(t, err)
	must(t, proveTCP(m))
	for _, c := range []struct {
		in string
		to unix.Sockaddr
	}{
		{"tcp_sock", &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}},
		{"tcp_sock", &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}}},
		{"tcp6_sock", &unix.SockaddrInet6{Addr: [16]byte{15: 1}}},
	} {
		t.Run(fmt.Sprintf("%s-%v", c.in, c.to), func(t *testing.T) {
			var fds []int
			pair := func() [2]int {
				p := loopPair(t, c.to)
				_, err := unix.Write(p[0], make([]byte, 777))
				must(t, err)
				_, _, err = unix.Recvfrom(p[1], make([]byte, 777), unix.MSG_WAITALL)
				must(t, err)
				fds = append(fds, p[:]...)
				return p
			}
			pair()
			changed := map[string][2]int{"data": pair(), "end": pair(), "urgent": pair(), "reset": pair()}
			time.Sleep(100 * time.Millisecond) // delayed acknowledgements
			var ask []kmem.Socket
			for _, fd := range fds {
				ask = append(ask, kmem.Socket{FD: fd, Struct: c.in})
			}
			known, err := m.Sockets(ask)
			must(t, err)
			layout, err := m.TCPLayout(c.in)
			must(t, err)
			read := func() map[int]*tcpQueues {
				all, clock := map[int]*tcpQueues{}, tcpClock{}
				must(t, layout.Again(known, func(i int, told kmem.TCP) {
					if q := quietQueues(fds[i], &told, &clock); q != nil {
						all[fds[i]] = q
					}
				}))
				return all
			}
			got := read()
			if len(got) != len(fds) {
				t.Fatalf("%d of %d connections are quiet", len(got), len(fds))
			}
			for fd, q := range got {
				p, err := newPeek(fd)
				must(t, err)
				must(t, (&Scene{}).runPeeks(p))
				want, err := p.result()
				must(t, err)
				if q.sendSeq != want.sendSeq || q.recvSeq != want.recvSeq || q.mss != want.mss || !bytes.Equal(q.window, want.window) || len(want.send)+len(want.recv) != 0 {
					t.Errorf("%+v in the memory, %+v in repair mode", q, want)
				}
				if d := int32(want.time - q.time); d < -3 || d > 10_000 {
					t.Errorf("the time is %d, %d in repair mode", q.time, want.time)
				}
			}
			_, err = unix.Write(changed["data"][0], []byte("x"))
			must(t, err)
			must(t, unix.Shutdown(changed["end"][0], unix.SHUT_WR))
			must(t, unix.Sendto(changed["urgent"][0], []byte("!"), unix.MSG_OOB, nil))
			must(t, unix.SetsockoptLinger(changed["reset"][0], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			must(t, addressed(unix.SYS_CONNECT, changed["reset"][0], make([]byte, 16))) // AF_UNSPEC: with a reset
			time.Sleep(20 * time.Millisecond)
			got = read()
			for what, p := range changed {
				if got[p[1]] != nil {
					t.Errorf("%s came to a connection, which is quiet", what)
				}
			}
			if len(got) < 2 {
				t.Errorf("%d connections are quiet, and two have not changed", len(got))
			}
		})
	}
}
