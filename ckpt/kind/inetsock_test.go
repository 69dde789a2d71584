package kind

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func newSocket(t *testing.T, family, typ, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

var localhost = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}

// gone closes the originals, which have the addresses, between dump and open.
func goneThenOpen(t *testing.T, s *stage, fds ...int) []int {
	t.Helper()
	s.add(fds...)
	must(t, image.Refusals(s.check()))
	s.dump()
	for _, fd := range fds {
		unix.Close(fd)
	}
	got, err := s.open()
	must(t, err)
	return got
}

func TestInetListening(t *testing.T) {
	for _, protocol := range []int{0, ipprotoMPTCP} {
		fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, protocol)
		must(t, unix.Bind(fd, localhost))
		must(t, unix.Listen(fd, 33))
		name, err := sockName(fd, unix.SYS_GETSOCKNAME)
		must(t, err)
		got := goneThenOpen(t, newStage(t), fd)
		if now, err := sockName(got[0], unix.SYS_GETSOCKNAME); err != nil || !bytes.Equal(now, name) {
			t.Errorf("the address is %s, was %s: %v", addrText(now), addrText(name), err)
		}
		if in, err := readTCPInfo(got[0]); err != nil || in.state != stateListen || in.backlog != 33 {
			t.Errorf("it came out as %+v %v", in, err)
		}
	}
}

// TestInetOptions sets every option of the table that can be set to some other value, and wants it back.
func TestInetOptions(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range [][3]int{{unix.AF_INET, unix.SOCK_STREAM, 0}, {unix.AF_INET6, unix.SOCK_STREAM, 0}, {unix.AF_INET, unix.SOCK_DGRAM, 0},
		{unix.AF_INET6, unix.SOCK_DGRAM, 0}, {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6}} {
		fd := newSocket(t, kind[0], kind[1], kind[2])
		want := map[string][]byte{}
		for i := range optSpecs {
			s := &optSpecs[i]
			now, ok, err := getOpt(fd, s)
			must(t, err)
			if !ok || s.when == optRefuse || s.name == unix.SO_LOCK_FILTER && s.level == unix.SOL_SOCKET {
				continue
			}
			for _, v := range otherValues(s, now) {
				if setOpt(fd, s, v) != nil {
					continue
				}
				if is, _, err := getOpt(fd, s); err == nil && !bytes.Equal(is, now) {
					break
				}
			}
		}
		for i := range optSpecs { // one option can change another one
			s := &optSpecs[i]
			if v, ok, err := getOpt(fd, s); err == nil && ok {
				want[s.text] = bytes.Clone(v)
			}
		}
		fresh, err := sockDefaults{}.of(kind[0], kind[1], kind[2])
		must(t, err)
		opts, err := dumpOpts(fd, kind[1], fresh)
		must(t, err)
		for i := range opts {
			seen[opts[i].spec().text] = true
		}
		_, got := roundTrip(t, fd)
		for i := range optSpecs {
			s := &optSpecs[i]
			if is, ok, _ := getOpt(got[0], s); ok && s.when != optRefuse && !s.alike(is, want[s.text]) && !(kind[1] == unix.SOCK_STREAM && s.multicast()) {
				t.Errorf("%v: %s is %x, was %x", kind, s.text, is, want[s.text])
			}
		}
	}
	for _, name := range []string{"SO_REUSEADDR", "SO_KEEPALIVE", "SO_SNDBUF", "SO_RCVBUF", "SO_LINGER", "SO_RCVTIMEO", "SO_MARK", "SO_PRIORITY", "SO_TIMESTAMPNS",
		"IP_TOS", "IP_TTL", "IP_FREEBIND", "IP_TRANSPARENT", "IP_PKTINFO", "IP_MULTICAST_TTL", "IPV6_V6ONLY", "IPV6_TCLASS", "IPV6_RECVPKTINFO",
		"TCP_NODELAY", "TCP_CONGESTION", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "UDP_GRO", "ICMP_FILTER", "ICMP6_FILTER"} {
		if !seen[name] {
			t.Errorf("%s was not tried", name)
		}
	}
	t.Logf("%d options were tried", len(seen))
}

// otherValues are values to try for an option.
func otherValues(s *optSpec, now []byte) [][]byte {
	ne := binary.NativeEndian
	switch {
	case s.text == "SO_LINGER":
		return [][]byte{{1, 0, 0, 0, 7, 0, 0, 0}}
	case s.text == "SO_RCVTIMEO" || s.text == "SO_SNDTIMEO":
		return [][]byte{ne.AppendUint64(ne.AppendUint64(nil, 3), 250000)}
	case s.text == "TCP_CONGESTION":
		return [][]byte{[]byte("reno")}
	case s.text == "SO_SNDBUF" || s.text == "SO_RCVBUF":
		return [][]byte{ne.AppendUint32(nil, 60000)}
	case s.text == "SO_BUF_LOCK":
		return [][]byte{ne.AppendUint32(nil, 3)}
	case s.text == "SO_BINDTOIFINDEX": // the loopback device would bind what follows to it
		return nil
	case s.bytes() != 4:
		v := bytes.Clone(now)
		if len(v) > 0 {
			v[0] ^= 1
		}
		return [][]byte{v}
	}
	n := ne.Uint32(now)
	return [][]byte{ne.AppendUint32(nil, n^1), ne.AppendUint32(nil, n+1), ne.AppendUint32(nil, 2), ne.AppendUint32(nil, 100)}
}

func TestInetRefusals(t *testing.T) {
	l := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Bind(l, localhost))
	must(t, unix.Listen(l, 5))
	at, err := unix.Getsockname(l)
	must(t, err)
	c := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(c, at))
	s := newStage(t)
	s.add(l)
	refused(t, s.check(), "a connection waits to be accepted by it", "tcp=reset")
	s = newStage(t)
	s.add(c)
	refused(t, s.check(), "it is connected to 127.0.0.1:", "tcp=close")
	corked := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	must(t, unix.SetsockoptInt(corked, unix.SOL_UDP, unix.UDP_CORK, 1))
	s = newStage(t)
	s.add(corked)
	refused(t, s.check(), "its option UDP_CORK cannot be set again")
	s = newStage(t)
	s.outside[unix.O_RDONLY] = 1
	s.add(newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0))
	refused(t, s.check(), "which is outside the tree, has this socket too")
}

// TestInetHostile refuses records that no checkpoint has written.
func TestInetHostile(t *testing.T) {
	good := func() *inetRec {
		return &inetRec{Family: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP, Name: loopback(unix.AF_INET)}
	}
	must(t, good().valid())
	conn := func(spoil func(r *inetRec, c *tcpConn)) func(r *inetRec) {
		return func(r *inetRec) {
			r.Conn = &tcpConn{Peer: loopback(unix.AF_INET), MSS: 1000, Window: make([]byte, tcpWindowLen), Orphan: true}
			must(t, r.valid())
			spoil(r, r.Conn)
		}
	}
	for name, spoil := range map[string]func(r *inetRec){
		"family":         func(r *inetRec) { r.Family = unix.AF_UNIX },
		"type":           func(r *inetRec) { r.Type = unix.SOCK_SEQPACKET },
		"protocol":       func(r *inetRec) { r.Protocol = unix.IPPROTO_UDP },
		"short address":  func(r *inetRec) { r.Name = r.Name[:7] },
		"other address":  func(r *inetRec) { r.Name = loopback(unix.AF_INET6) },
		"peer":           func(r *inetRec) { r.Peer = loopback(unix.AF_INET) },
		"end":            func(r *inetRec) { r.Ended = 9 },
		"ended listener": func(r *inetRec) { r.Ended, r.Listening = endedOver, true },
		"filter":         func(r *inetRec) { r.Filter = make([]byte, 9) },
		"long filter":    func(r *inetRec) { r.Filter = make([]byte, 1<<20) },
		"option":         func(r *inetRec) { r.Opts = []sockOpt{{unix.SOL_SOCKET, unix.SO_ERROR, make([]byte, 4)}} },
		"option length":  func(r *inetRec) { r.Opts = []sockOpt{{unix.SOL_SOCKET, unix.SO_KEEPALIVE, make([]byte, 400)}} },
		"refused option": func(r *inetRec) { r.Opts = []sockOpt{{unix.SOL_UDP, unix.UDP_ENCAP, make([]byte, 4)}} },
		"many options":   func(r *inetRec) { r.Opts = make([]sockOpt, 10000) },
		"group":          func(r *inetRec) { r.Groups = []group{{Addr: []byte{1, 2, 3, 4}}} },
		"group length":   func(r *inetRec) { r.Groups = []group{{Addr: []byte{239, 2, 3}}} },
		"group source":   func(r *inetRec) { r.Groups = []group{{Addr: []byte{239, 1, 1, 1}, Sources: [][]byte{{1}}}} },
		"many groups":    func(r *inetRec) { r.Groups = make([]group, 100000) },
		"unread":         func(r *inetRec) { r.Ended = endedRead; r.Name = nil },
		"two things":     conn(func(r *inetRec, c *tcpConn) { r.Listening = true }),
		"over":           conn(func(r *inetRec, c *tcpConn) { r.Ended = endedOver }),
		"unbound":        conn(func(r *inetRec, c *tcpConn) { r.Name = nil }),
		"no peer":        conn(func(r *inetRec, c *tcpConn) { c.Peer = nil }),
		"wrong peer":     conn(func(r *inetRec, c *tcpConn) { c.Peer = loopback(unix.AF_INET6) }),
		"UDP":            conn(func(r *inetRec, c *tcpConn) { r.Type, r.Protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP }),
		"large queue":    conn(func(r *inetRec, c *tcpConn) { c.SendLen = maxTCPQueue + 1 }),
		"large queue 2":  conn(func(r *inetRec, c *tcpConn) { c.RecvLen = 1<<32 - 1 }),
		"scale":          conn(func(r *inetRec, c *tcpConn) { c.SndScale = 15 }),
		"other scale":    conn(func(r *inetRec, c *tcpConn) { c.RcvScale = 255 }),
		"segments":       conn(func(r *inetRec, c *tcpConn) { c.MSS = 1<<16 + 1 }),
		"tiny segments":  conn(func(r *inetRec, c *tcpConn) { c.MSS = 0 }),
		"window":         conn(func(r *inetRec, c *tcpConn) { c.Window = c.Window[1:] }),
		"never sent":     conn(func(r *inetRec, c *tcpConn) { c.Unsent = 1 }),
		"in and out":     conn(func(r *inetRec, c *tcpConn) { c.Outside, c.Orphan = true, true }),
	} {
		r := good()
		spoil(r)
		if r.valid() == nil {
			t.Errorf("%s: accepted", name)
		}
		rec := image.File{Kind: "inet"}
		must(t, encodeRec(&rec, r))
		if fd, err := (inetSock{}).Open(&rec, newStage(t).env); err == nil {
			unix.Close(fd)
			t.Errorf("%s: opened", name)
		}
	}
}

func TestParseInet(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	lines, err := parseInet(head + "   0: 0100007F:9B2D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0\n")
	must(t, err)
	want := inetLine{netip.MustParseAddrPort("127.0.0.1:39725"), netip.MustParseAddrPort("0.0.0.0:0"), stateListen, 12345}
	if len(lines) != 1 || lines[0] != want {
		t.Errorf("%+v, want %+v", lines, want)
	}
	lines, err = parseInet(head + "   1: 00000000000000000000000001000000:0050 B80D0120000000000000000001000000:1F90 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0\n")
	must(t, err)
	if len(lines) != 1 || lines[0].local.String() != "[::1]:80" || lines[0].remote.String() != "[2001:db8::1]:8080" || lines[0].state != tcpTimeWait {
		t.Errorf("%+v", lines)
	}
	if v, err := parseIGMP("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"); err != nil ||
		len(v) != 1 || v[0] != (groupKey{1, netip.MustParseAddr("224.0.0.1")}) {
		t.Errorf("%v %v", v, err)
	}
	if v, err := parseIGMP6("1    lo              ff020000000000000000000000000001     1 0000000C 0\n"); err != nil || len(v) != 1 || v[0] != (groupKey{1, netip.MustParseAddr("ff02::1")}) {
		t.Errorf("%v %v", v, err)
	}
}

func FuzzParseInet(f *testing.F) {
	f.Add("head\n 0: 0100007F:9B2D 00000000:0000 0A 0:0 00:0 0 0 0 12345\n")
	f.Add("head\n 0: 0100007F 00000000:0000 0A 0:0 00:0 0 0 0 12345\n")
	f.Add("1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n")
	f.Add("1    lo              ff020000000000000000000000000001     1 0000000C 0\n")
	f.Fuzz(func(t *testing.T, s string) {
		lines, err := parseInet(s)
		if err == nil {
			for _, l := range lines {
				if !l.local.IsValid() || !l.remote.IsValid() {
					t.Errorf("%q: %+v", s, l)
				}
			}
		}
		_, _ = parseIGMP(s) // must not panic
		_, _ = parseIGMP6(s)
	})
}

// TestInetEndedPort restores a connection that was reset while somebody else is connected from its port.
func TestInetEndedPort(t *testing.T) {
	listener := func() (int, unix.Sockaddr) {
		l := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, unix.Bind(l, localhost))
		must(t, unix.Listen(l, 5))
		at, err := unix.Getsockname(l)
		must(t, err)
		return l, at
	}
	l, at := listener()
	_, elsewhere := listener()
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Connect(c, at))
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	must(t, err)
	must(t, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	must(t, unix.Close(a))
	must(t, awaitReset(c))
	_, err = unix.GetsockoptInt(c, unix.SOL_SOCKET, unix.SO_ERROR) // it was reported
	must(t, err)
	name, err := unix.Getsockname(c)
	must(t, err)
	s := newStage(t)
	f := s.add(c)[0]
	must(t, image.Refusals(s.check()))
	s.dump()
	must(t, unix.Close(c))
	_ = unix.Close(f.FD) // it may be the same
	other := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Bind(other, name))
	must(t, unix.Connect(other, elsewhere))
	got, err := s.open()
	must(t, err)
	is, err := unix.Getsockname(got[0])
	must(t, err)
	if is.(*unix.SockaddrInet4).Port != name.(*unix.SockaddrInet4).Port {
		t.Errorf("it came out at %v, and was at %v", is, name)
	}
}
