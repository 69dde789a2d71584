package kmem

import (
	"encoding/binary"
	"fmt"
)

// TCP is what the kernel's memory holds of a TCP connection that getsockopt(2) tells in repair mode only
// (struct tcp_sock of linux/tcp.h).
type TCP struct {
	Unacked  uint32    // snd_una, the first byte sent that is not acknowledged
	SendSeq  uint32    // write_seq, behind the last byte to be sent
	RecvSeq  uint32    // rcv_nxt, behind the last byte received
	Unread   uint32    // copied_seq, the first byte that the program has not read
	MSSClamp uint16    // rx_opt.mss_clamp, bytes
	Window   [5]uint32 // struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
}

// tcpMembers are in the order of TCP.
var tcpMembers = [...]string{"snd_una", "write_seq", "rcv_nxt", "copied_seq", "rx_opt.mss_clamp",
	"snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup"}

// TCPLayout is where these stand in what EachSocket gives of a socket.
type TCPLayout struct{ at [len(tcpMembers)]uint64 }

// TCPLayout finds it of sockets that are a tcp_sock or, of IPv6, a tcp6_sock.
func (m *Memory) TCPLayout(name string) (*TCPLayout, error) {
	w := walk{m: m}
	first := w.off("socket.wq")
	if name == "tcp6_sock" {
		first += w.off("tcp6_sock.tcp")
	}
	l := &TCPLayout{}
	for i, member := range tcpMembers {
		l.at[i] = first + w.off("tcp_sock."+member)
	}
	return l, w.err
}

// Read reads them.
func (l *TCPLayout) Read(memory []byte) (t TCP, err error) {
	to := [len(tcpMembers)]*uint32{&t.Unacked, &t.SendSeq, &t.RecvSeq, &t.Unread, nil,
		&t.Window[0], &t.Window[1], &t.Window[2], &t.Window[3], &t.Window[4]}
	for k, v := range to {
		switch at := l.at[k]; {
		case at+4 > uint64(len(memory)):
			return t, fmt.Errorf("%s of a socket is not among the %d bytes that were read", tcpMembers[k], len(memory))
		case v == nil:
			t.MSSClamp = binary.LittleEndian.Uint16(memory[at:])
		default:
			*v = binary.LittleEndian.Uint32(memory[at:])
		}
	}
	return t, nil
}
