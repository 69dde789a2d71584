package kind

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// inetLine is one line of /proc/net/tcp, udp, raw or icmp, or of their IPv6 brothers.
type inetLine struct {
	local, remote netip.AddrPort
	state         uint8
	inode         uint64 // 0: no process has it any more
}

// ends is the pair of addresses of a line, as a socket's own side sees it.
func (l *inetLine) ends() ends {
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	return ends{unmap(l.local), unmap(l.remote)}
}

// inetLines reads such files; those of a family that the kernel lacks are empty.
func inetLines(names ...string) ([]inetLine, error) {
	var all []inetLine
	for _, name := range names {
		text, err := quickread.File("/proc/thread-self/net/" + name)
		if err != nil {
			continue // no IPv6, or no such protocol
		}
		lines, err := parseInet(string(text))
		if err != nil {
			return nil, fmt.Errorf("/proc/net/%s: %w", name, err)
		}
		all = append(all, lines...)
	}
	return all, nil
}

// parseInet parses one of them. The first line has the names of the columns.
func parseInet(text string) ([]inetLine, error) {
	var all []inetLine
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) == 0 {
			continue
		}
		if len(f) < 10 {
			return nil, fmt.Errorf("line %d has %d fields", i+1, len(f))
		}
		local, err := parseHexAddr(f[1])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		remote, err := parseHexAddr(f[2])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		state, err := strconv.ParseUint(f[3], 16, 8)
		if err != nil {
			return nil, fmt.Errorf("line %d: state %q", i+1, f[3])
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %d: inode %q", i+1, f[9])
		}
		all = append(all, inetLine{local, remote, uint8(state), inode})
	}
	return all, nil
}

// parseHexAddr reads an address as it lies in memory, word by word, and a port.
func parseHexAddr(s string) (netip.AddrPort, error) {
	addr, port, ok := strings.Cut(s, ":")
	p, err := strconv.ParseUint(port, 16, 16)
	b, err2 := hex.DecodeString(addr)
	if !ok || err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(p)), nil
}

// rawPeer finds whom a raw or ping socket is connected to, which getpeername(2) does not tell as it
// has no port. It is nil if there is none.
func (r *inetRec) rawPeer(inode uint64) ([]byte, error) {
	lines, err := inetLines("raw", "raw6", "icmp", "icmp6")
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		if l.inode == inode && !l.remote.Addr().IsUnspecified() {
			return sockaddrOf(r.Family, l.remote), nil
		}
	}
	return nil, nil
}

// sockaddrOf is the struct sockaddr of an address.
func sockaddrOf(family int32, a netip.AddrPort) []byte {
	if family == unix.AF_INET {
		sa := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(sa, unix.AF_INET)
		binary.BigEndian.PutUint16(sa[2:], a.Port())
		v4 := a.Addr().As4()
		copy(sa[4:], v4[:])
		return sa
	}
	sa := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(sa, unix.AF_INET6)
	binary.BigEndian.PutUint16(sa[2:], a.Port())
	v6 := a.Addr().As16()
	copy(sa[8:], v6[:])
	return sa
}

// portHolder finds a process with a socket on a port, or 0.
func portHolder(protocol int32, port uint16) int {
	name := map[int32]string{unix.IPPROTO_UDP: "udp", ipprotoUDPLite: "udplite"}[protocol]
	if name == "" {
		name = "tcp"
	}
	lines, err := inetLines(name, name+"6")
	if err != nil {
		return 0
	}
	links := map[string]bool{}
	for _, l := range lines {
		if l.local.Port() == port && l.inode != 0 {
			links[fmt.Sprintf("socket:[%d]", l.inode)] = true
		}
	}
	return holderOfLink(links)
}

// States in which nothing is to come of a connection that no process has any more.
const (
	tcpFinWait2 = 5
	tcpTimeWait = 6
)

// endLingering ends what lingers of connections of the old process on the address: for a minute it
// would keep others from binding to it.
func (r *inetRec) endLingering() error {
	lines, err := inetLines("tcp", "tcp6")
	if err != nil {
		return err
	}
	mine := addrPort(r.Name)
	for _, l := range lines {
		a := l.local.Addr().Unmap()
		same := a == mine.Addr().Unmap() || mine.Addr().IsUnspecified()
		if l.inode == 0 && l.local.Port() == mine.Port() && same && (l.state == tcpTimeWait || l.state == tcpFinWait2) {
			if err := destroySocket(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// destroySocket has the kernel forget a connection (SOCK_DESTROY of sock_diag(7)).
func destroySocket(l inetLine) error {
	fd, err := diagSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const length, sockDestroy = 16 + 56, 21 // struct nlmsghdr and struct inet_diag_req_v2
	ne := binary.NativeEndian
	req := make([]byte, length)
	ne.PutUint32(req, length)
	ne.PutUint16(req[4:], sockDestroy)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b := req[16:]
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_TCP
	if l.local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	ne.PutUint32(b[4:], 1<<l.state)
	binary.BigEndian.PutUint16(b[8:], l.local.Port())
	binary.BigEndian.PutUint16(b[10:], l.remote.Port())
	copy(b[12:], l.local.Addr().AsSlice())
	copy(b[28:], l.remote.Addr().AsSlice())
	ne.PutUint64(b[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	if n < 20 {
		return fmt.Errorf("sock_diag: an answer of %d bytes", n)
	}
	if code := -int32(ne.Uint32(buf[16:])); code != 0 && unix.Errno(code) != unix.ENOENT {
		return fmt.Errorf("sock_diag cannot end a connection that lingers (CONFIG_INET_DIAG_DESTROY): %w", unix.Errno(code))
	}
	return nil
}
