package kmem

import (
	"bytes"
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
	TimeOff  uint32    // tsoffset, what TCP_TIMESTAMP has more than the clock of all connections
	Micro    bool      // tcp_usec_ts: that clock counts microseconds, and not milliseconds
}

// tcpMembers are in the order of TCP.
var tcpMembers = [...]string{"snd_una", "write_seq", "rcv_nxt", "copied_seq", "rx_opt.mss_clamp",
	"snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup", "tsoffset"}

// TCPLayout is where these stand in what EachSocket gives of a socket.
type TCPLayout struct {
	m        *Memory
	at       [len(tcpMembers)]uint64
	lo, hi   uint64 // of all these
	state    uint64
	sk, wait uint64 // see socketReader
	micro    int64  // in bits; -1: this kernel has no such connections
}

// TCPLayout finds it of sockets that are a tcp_sock or, of IPv6, a tcp6_sock.
func (m *Memory) TCPLayout(name string) (*TCPLayout, error) {
	w := walk{m: m}
	l := &TCPLayout{m: m, wait: w.off("socket.wq"), sk: w.off("socket.sk"), lo: ^uint64(0), micro: -1}
	first := l.wait
	if name == "tcp6_sock" {
		first += w.off("tcp6_sock.tcp")
	}
	for i, member := range tcpMembers {
		l.at[i] = first + w.off("tcp_sock."+member)
		l.lo, l.hi = min(l.lo, l.at[i]), max(l.hi, l.at[i]+4)
	}
	l.state = l.wait + w.off("sock.__sk_common.skc_state")
	if m.Has("tcp_sock.tcp_usec_ts") { // since Linux 6.7
		f, err := m.types.find("tcp_sock.tcp_usec_ts")
		if err != nil {
			return nil, err
		}
		l.micro = int64(8*first) + int64(f.bits)
	}
	if w.err == nil && l.hi-l.lo > maxRead {
		w.err = fmt.Errorf("a tcp_sock of this kernel is %d bytes long", l.hi-l.lo)
	}
	return l, w.err
}

// Again reads what changes in a connection when anything comes or goes, of sockets that are open since EachSocket has given
// these bytes, and gives see what is still the same.
func (l *TCPLayout) Again(known [][]byte, see func(i int, t TCP)) error {
	size := int(l.hi - l.lo)
	room := make([]byte, socketBatch*(size+1))
	var places [2 * socketBatch]Place
	for first := 0; first < len(known); first += socketBatch {
		batch := known[first:min(first+socketBatch, len(known))]
		for i, b := range batch {
			if l.hi > uint64(len(b)) || l.state >= uint64(len(b)) {
				return fmt.Errorf("%d bytes are not a TCP socket", len(b))
			}
			sk := binary.LittleEndian.Uint64(b[l.sk:]) - l.wait
			mine := room[i*(size+1):][:size+1]
			places[2*i] = Place{Addr: sk + l.lo, Bytes: mine[:size]}
			places[2*i+1] = Place{Addr: sk + l.state, Bytes: mine[size:]}
		}
		if err := l.m.ReadEach(places[:2*len(batch)]); err != nil {
			return err
		}
		for i, b := range batch {
			p := places[2*i : 2*i+2]
			if p[0].Err != nil || p[1].Err != nil || !bytes.Equal(p[0].Bytes, b[l.lo:l.hi]) || p[1].Bytes[0] != b[l.state] {
				continue
			}
			t, err := l.Read(b)
			if err != nil {
				return err
			}
			see(first+i, t)
		}
	}
	return nil
}

// Read reads them.
func (l *TCPLayout) Read(memory []byte) (t TCP, err error) {
	to := [len(tcpMembers)]*uint32{&t.Unacked, &t.SendSeq, &t.RecvSeq, &t.Unread, nil,
		&t.Window[0], &t.Window[1], &t.Window[2], &t.Window[3], &t.Window[4], &t.TimeOff}
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
	if l.micro >= 0 && uint64(l.micro/8) < uint64(len(memory)) {
		t.Micro = memory[l.micro/8]>>(l.micro%8)&1 != 0
	}
	return t, nil
}
