package kind

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// liveTCP are all TCP sockets of our network namespace but for those in TIME_WAIT: where connections come and go
// there are tens of thousands of these, and to read them takes a tenth of a second. Without
// sock_diag(7) for TCP (CONFIG_INET_TCP_DIAG) they come from /proc/net.
func liveTCP() ([]inetLine, error) {
	var all []inetLine
	for _, family := range [...]byte{unix.AF_INET, unix.AF_INET6} {
		const length = 56 // struct inet_diag_req_v2
		body := make([]byte, length)
		body[0], body[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(body[4:], ^uint32(1<<tcpTimeWait))
		err := listSockets(body, func(b []byte) (bool, error) {
			return parseDiag(b, "TCP sockets", func(body []byte) {
				if l, ok := parseInetDiag(body); ok {
					all = append(all, l)
				}
			})
		})
		if err != nil {
			return inetLines("tcp", "tcp6")
		}
	}
	return all, nil
}

// parseInetDiag reads a struct inet_diag_msg.
func parseInetDiag(b []byte) (l inetLine, ok bool) {
	const src, dst, inode, size = 8, 24, 68, 72
	if len(b) < size {
		return l, false
	}
	addr := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16]))
	}
	be := binary.BigEndian
	return inetLine{local: netip.AddrPortFrom(addr(src), be.Uint16(b[4:])), remote: netip.AddrPortFrom(addr(dst), be.Uint16(b[6:])),
		state: b[1], inode: uint64(binary.NativeEndian.Uint32(b[inode:]))}, true
}
