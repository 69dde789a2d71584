package kmem

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCPWaiting is a connection that waits to be accepted: nobody has a descriptor of it yet.
type TCPWaiting struct {
	Local, Peer netip.AddrPort
	State       uint8  // TCP_ESTABLISHED …
	Copied      uint32 // sequence number of the first byte that waits in it
	Received    uint32 // of the first that has not come; it counts a FIN
	Data        []byte // what waits in it
	Awkward     string // what else there is with it, or ""
}

// ipprotoMPTCP is IPPROTO_MPTCP of linux/in.h.
const ipprotoMPTCP = 262

// TCPAccepting are the connections that wait to be accepted by the listening TCP socket behind a descriptor of ours, in their order.
func (m *Memory) TCPAccepting(fd int) ([]TCPWaiting, error) {
	sock, err := m.sock(fd)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	if w.get(sock, "sock.sk_protocol") == ipprotoMPTCP { // the TCP socket below it listens
		sock = w.get(sock, "mptcp_sock.first")
	}
	var all []TCPWaiting
	for req := w.get(sock, "inet_connection_sock.icsk_accept_queue.rskq_accept_head"); w.err == nil && req != 0; req = w.get(req, "request_sock.dl_next") {
		if len(all) == listLimit {
			return nil, fmt.Errorf("a list in the kernel has no end")
		}
		all = append(all, w.tcpWaiting(w.get(req, "request_sock.sk")))
	}
	return all, w.err
}

// tcpWaiting reads one of them.
func (w *walk) tcpWaiting(sock uint64) (c TCPWaiting) {
	common := func(member string) uint64 { return w.get(sock, "sock.__sk_common."+member) }
	c.State = uint8(common("skc_state"))
	c.Local, c.Peer = w.sockEnds(sock)
	c.Copied, c.Received = uint32(w.get(sock, "tcp_sock.copied_seq")), uint32(w.get(sock, "tcp_sock.rcv_nxt"))
	seqAt := w.off("sk_buff.cb") + w.off("tcp_skb_cb.seq")
	for _, skb := range w.skbs(sock + w.off("sock.sk_receive_queue")) {
		var seq [4]byte
		if w.err == nil {
			w.err = w.m.Read(skb+seqAt, seq[:])
		}
		skip := c.Copied + uint32(len(c.Data)) - binary.LittleEndian.Uint32(seq[:])
		if w.err == nil && skip > uint32(w.get(skb, "sk_buff.len")) {
			c.Awkward = "what waits in it has gaps"
			return c
		}
		c.Data = w.bytes(c.Data, skb, skip)
	}
	switch {
	case w.m.Has("tcp_sock.is_mptcp") && w.get(sock, "tcp_sock.is_mptcp") != 0:
		c.Awkward = "it is of MPTCP"
	case w.get(sock, "tcp_sock.urg_data") != 0:
		c.Awkward = "urgent data waits in it"
	case w.get(sock, "sock.sk_err") != 0:
		c.Awkward = "an error waits to be reported by it"
	case w.get(sock, "tcp_sock.out_of_order_queue.rb_node") != 0:
		c.Awkward = "what waits in it has gaps"
	}
	return c
}

// sockEnds are the two addresses of a network socket.
func (w *walk) sockEnds(sock uint64) (local, peer netip.AddrPort) {
	at := func(member string) uint64 { return sock + w.off("sock.__sk_common."+member) }
	addr := func(v4, v6 string) netip.Addr {
		var b [16]byte
		if uint16(w.get(sock, "sock.__sk_common.skc_family")) == unix.AF_INET6 {
			if where := at(v6); w.err == nil {
				w.err = w.m.Read(where, b[:])
			}
			return netip.AddrFrom16(b).Unmap()
		}
		if where := at(v4); w.err == nil {
			w.err = w.m.Read(where, b[:4])
		}
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	port := uint16(w.get(sock, "sock.__sk_common.skc_dport"))
	return netip.AddrPortFrom(addr("skc_rcv_saddr", "skc_v6_rcv_saddr"), uint16(w.get(sock, "sock.__sk_common.skc_num"))),
		netip.AddrPortFrom(addr("skc_daddr", "skc_v6_daddr"), port<<8|port>>8)
}

// UnixWaiting is a unix connection that waits to be accepted, and what was sent to it.
type UnixWaiting struct {
	Peer     uint64 // inode number of its other end; 0: that was closed
	Messages []UnixMessage
	Awkward  string // what else there is with it, or ""
}

// UnixMessage is what one call has sent to a unix socket.
type UnixMessage struct {
	Data          []byte
	PID, UID, GID uint32 // of who has sent it, as we see them; PID 0: it does not say
}

// UnixAccepting are the connections that wait to be accepted by the listening unix socket behind a descriptor of ours, in their order.
func (m *Memory) UnixAccepting(fd int) ([]UnixWaiting, error) {
	sock, err := m.sock(fd)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	var all []UnixWaiting
	for _, skb := range w.skbs(sock + w.off("sock.sk_receive_queue")) {
		all = append(all, w.unixWaiting(w.get(skb, "sk_buff.sk")))
	}
	return all, w.err
}

// unixWaiting reads one of them.
func (w *walk) unixWaiting(sock uint64) (c UnixWaiting) {
	if peer := w.get(sock, "unix_sock.peer"); w.err == nil && peer != 0 {
		if s := w.get(peer, "sock.sk_socket"); s != 0 {
			c.Peer = w.get(s-w.off("socket_alloc.socket")+w.off("socket_alloc.vfs_inode"), "inode.i_ino")
		}
	}
	if w.get(sock, "unix_sock.oob_skb") != 0 {
		c.Awkward = "an out-of-band byte waits in it"
		return c
	}
	cb := w.off("sk_buff.cb")
	for _, skb := range w.skbs(sock + w.off("sock.sk_receive_queue")) {
		at := skb + cb
		if w.get(at, "unix_skb_parms.fp") != 0 {
			c.Awkward = "files are under way in it"
			return c
		}
		msg := UnixMessage{Data: w.bytes(nil, skb, uint32(w.get(at, "unix_skb_parms.consumed"))),
			UID: uint32(w.get(at, "unix_skb_parms.uid.val")), GID: uint32(w.get(at, "unix_skb_parms.gid.val"))}
		if id := w.get(at, "unix_skb_parms.pid"); id != 0 {
			msg.PID = w.upid(id)
		}
		c.Messages = append(c.Messages, msg)
	}
	return c
}

// upid is the number of a struct pid in our pid namespace, or 0.
func (w *walk) upid(id uint64) uint32 {
	task, err := w.m.Task()
	if w.err == nil {
		w.err = err
	}
	level := w.get(w.get(task, "task_struct.thread_pid"), "pid.level")
	if w.get(id, "pid.level") < level {
		return 0
	}
	var b [4]byte
	if at := id + w.off("pid.numbers") + upidSize*level; w.err == nil {
		w.err = w.m.Read(at, b[:])
	}
	return binary.LittleEndian.Uint32(b[:])
}
