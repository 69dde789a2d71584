package kind

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// TestSocketMemoryHasOptions changes each option of each kind of socket: then what the kernel's memory holds of the
// socket has to be another, or the memo would be wrong.
func TestSocketMemoryHasOptions(t *testing.T) {
	m, err := kmem.Open()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, c := range []struct {
		family, typ int
		in          string
	}{
		{unix.AF_INET, unix.SOCK_STREAM, "tcp_sock"}, {unix.AF_INET6, unix.SOCK_STREAM, "tcp6_sock"},
		{unix.AF_INET, unix.SOCK_DGRAM, "udp_sock"}, {unix.AF_INET6, unix.SOCK_DGRAM, "udp6_sock"},
		{unix.AF_INET, unix.SOCK_RAW, "raw_sock"}, {unix.AF_INET6, unix.SOCK_RAW, "raw6_sock"},
		{unix.AF_UNIX, unix.SOCK_STREAM, "unix_sock"}, {unix.AF_UNIX, unix.SOCK_DGRAM, "unix_sock"},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.in, c.typ), func(t *testing.T) {
			protocol := 0
			if c.typ == unix.SOCK_RAW {
				protocol = 253 // for experiments
			}
			for i := range optSpecs {
				o := &optSpecs[i]
				fd, err := unix.Socket(c.family, c.typ|unix.SOCK_CLOEXEC, protocol)
				if err != nil {
					t.Fatal(err)
				}
				memory := func() []byte {
					all, err := m.Sockets([]kmem.Socket{{FD: fd, Struct: c.in}})
					if err != nil {
						t.Fatal(err)
					}
					return all[0]
				}
				before, ok, err := getOpt(fd, o)
				was := memory()
				if was == nil {
					t.Fatal("a new socket has more elsewhere")
				}
				if err == nil && ok && changeOpt(fd, o, before) {
					total++
					if is := memory(); is != nil && bytes.Equal(was, is) {
						t.Errorf("%s was changed, and the memory of the socket is the same", o.text)
					}
				}
				unix.Close(fd)
			}
		})
	}
	if total < 150 {
		t.Errorf("only %d options could be changed", total)
	}
}

// changeOpt gives an option another value than before, if there is one that can be set.
func changeOpt(fd int, o *optSpec, before []byte) bool {
	n := max(o.bytes(), 4)
	for _, v := range []uint64{1, 2, 0, 3, 30, 4096, 1 << 20, ^uint64(0)} {
		for _, second := range []uint64{0, 5} {
			b := make([]byte, max(n, 16))
			binary.LittleEndian.PutUint64(b, v)
			if n == 8 {
				binary.LittleEndian.PutUint32(b[4:], uint32(second))
			}
			if n >= 16 {
				binary.LittleEndian.PutUint64(b[8:], second)
			}
			if o.name == unix.TCP_CONGESTION && o.level == unix.SOL_TCP {
				b = append([]byte("reno"), make([]byte, 12)...)
			}
			if o.name == unix.IP_OPTIONS && o.level == unix.SOL_IP {
				b, n = []byte{1, 1, 1, 1}, 4 // no-ops
			}
			if rawSetOpt(fd, o.level, o.name, b[:n]) != nil {
				continue
			}
			if after, ok, err := getOpt(fd, o); err == nil && ok && !bytes.Equal(after, before) {
				return true
			}
		}
	}
	return false
}

// TestSockMemo looks at many sockets, and again when some of them have changed.
func TestSockMemo(t *testing.T) {
	var files []*Found
	add := func(fd int, err error) *Found {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		f := &Found{FD: fd}
		if err := unix.Fstat(fd, &f.Stat); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		return f
	}
	for range fewestSockets {
		add(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	}
	udp := add(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	bound := add(unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	filtered := add(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	member := add(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	written, idle := add(pair[0], err), add(pair[1], err)
	listening := add(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	if err := unix.Bind(listening.FD, &unix.SockaddrUnix{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listening.FD, 5); err != nil {
		t.Fatal(err)
	}
	if m := RememberSockets(&Scene{Files: files[:3]}); m != nil {
		t.Error("three sockets are noted")
	}
	m := RememberSockets(&Scene{Files: files})
	if m == nil {
		t.Fatal("nothing is noted")
	}
	again := func() (known map[*Found]bool) {
		known = map[*Found]bool{}
		var fresh []*Found
		for _, f := range files {
			fresh = append(fresh, &Found{FD: f.FD, Stat: f.Stat})
		}
		m.Recall(fresh)
		for i, f := range fresh {
			known[files[i]] = f.known != nil
		}
		return known
	}
	known := again()
	for i, f := range files {
		if !known[f] {
			t.Errorf("socket %d is not known again", i)
		}
	}
	if _, ok := (&Found{FD: idle.FD, Stat: idle.Stat, known: m.by[[2]uint64{idle.Stat.Dev, idle.Stat.Ino}]}).FilesUnderWay(); !ok {
		t.Error("how many files are under way in an idle socket is not known")
	}
	if _, ok := (&Found{FD: listening.FD, Stat: listening.Stat, known: m.by[[2]uint64{listening.Stat.Dev, listening.Stat.Ino}]}).FilesUnderWay(); ok {
		t.Error("how many files are under way in connections that wait is said to be known")
	}
	for what, err := range map[string]error{
		"option":     unix.SetsockoptInt(udp.FD, unix.SOL_SOCKET, unix.SO_MARK, 7),
		"bind":       unix.Bind(bound.FD, &unix.SockaddrInet6{}),
		"filter":     attachFilter(filtered.FD, []byte{6, 0, 0, 0, 0xff, 0xff, 0, 0}),
		"membership": unix.SetsockoptIPMreq(member.FD, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: [4]byte{224, 0, 0, 251}, Interface: [4]byte{127, 0, 0, 1}}),
		"write":      func() error { _, err := unix.Write(idle.FD, []byte("x")); return err }(),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	known = again()
	for what, f := range map[string]*Found{"an option": udp, "a name": bound, "a filter": filtered, "a group": member, "data": written} {
		if known[f] {
			t.Errorf("a socket that got %s is known", what)
		}
	}
	if !known[files[0]] {
		t.Error("a socket that is as before is not known")
	}
}
