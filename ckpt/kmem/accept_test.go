package kmem

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTCPAccepting finds what was sent on connections that nobody has accepted.
func TestTCPAccepting(t *testing.T) {
	m := mustOpen(t)
	for network, addr := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1", "tcp": "127.0.0.1"} {
		bind := addr
		if network == "tcp" {
			bind = "" // both protocols: it sees addresses of IPv4 in IPv6
		}
		l, err := net.Listen(network, net.JoinHostPort(bind, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fd := fileOf(t, l.(*net.TCPListener))
		var conns []*net.TCPConn
		var sent [][]byte
		for i, n := range []int{0, 1, 100, 70_000, 200_000} {
			c, err := net.Dial(network, net.JoinHostPort(addr, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			data := make([]byte, n)
			_, _ = rand.Read(data)
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			if i == 2 {
				if err := c.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			conns, sent = append(conns, c.(*net.TCPConn)), append(sent, data)
		}
		all, err := m.TCPAccepting(fd)
		if err != nil || len(all) != len(conns) {
			t.Fatalf("%s: %d of %d connections: %v", network, len(all), len(conns), err)
		}
		for i, c := range all {
			local := conns[i].LocalAddr().(*net.TCPAddr).AddrPort()
			if c.Peer.Port() != local.Port() || c.Peer.Addr() != local.Addr().Unmap() || c.Local.Port() != conns[i].RemoteAddr().(*net.TCPAddr).AddrPort().Port() || c.Awkward != "" {
				t.Errorf("%s: connection %d from %v is %v from %v, %s", network, i, local, c.Local, c.Peer, c.Awkward)
			}
			if !bytes.HasPrefix(sent[i], c.Data) || len(c.Data) < min(len(sent[i]), 60_000) {
				t.Errorf("%s: connection %d: %d bytes were sent, %d are found, the same: %v", network, i, len(sent[i]), len(c.Data), bytes.HasPrefix(sent[i], c.Data))
			}
			fin := uint32(0)
			if i == 2 {
				fin = 1
			}
			if c.Received-c.Copied != uint32(len(c.Data))+fin || c.State != uint8(1+7*fin) {
				t.Errorf("%s: connection %d in state %d: %d bytes from %d to %d", network, i, c.State, len(c.Data), c.Copied, c.Received)
			}
		}
		for i := range all { // nothing was taken out
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(sent[i]))
			if n, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, sent[i]) {
				t.Errorf("%s: connection %d: %d of %d bytes are read", network, i, n, len(sent[i]))
			}
			a.Close()
		}
	}
}

// TestUnixAccepting is that of unix sockets.
func TestUnixAccepting(t *testing.T) {
	m := mustOpen(t)
	for _, network := range []string{"unix", "unixpacket"} {
		l, err := net.Listen(network, filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sent := [][]int{nil, {1}, {100, 5000, 40_000}, {3}}
		var data [][]byte
		var inodes []uint64
		for i, sizes := range sent {
			c, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fileOf(t, c.(*net.UnixConn)), &st); err != nil {
				t.Fatal(err)
			}
			for _, n := range sizes {
				b := make([]byte, n)
				_, _ = rand.Read(b)
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
				data = append(data, b)
			}
			if i == 3 {
				st.Ino = 0
				c.Close()
			} else {
				defer c.Close()
			}
			inodes = append(inodes, st.Ino)
		}
		all, err := m.UnixAccepting(fileOf(t, l.(*net.UnixListener)))
		if err != nil || len(all) != len(sent) {
			t.Fatalf("%s: %d of %d connections: %v", network, len(all), len(sent), err)
		}
		k := 0
		for i, c := range all {
			if c.Peer != inodes[i] || c.Awkward != "" {
				t.Errorf("%s: connection %d is of %d, not %d; %s", network, i, c.Peer, inodes[i], c.Awkward)
			}
			var got, want []byte
			for _, msg := range c.Messages {
				got = append(got, msg.Data...)
				if msg.PID != uint32(os.Getpid()) || msg.UID != 0 || msg.GID != 0 {
					t.Errorf("%s: connection %d: a message of %d, %d, %d", network, i, msg.PID, msg.UID, msg.GID)
				}
			}
			for range sent[i] {
				want = append(want, data[k]...)
				k++
			}
			if !bytes.Equal(got, want) || network == "unixpacket" && len(c.Messages) != len(sent[i]) {
				t.Errorf("%s: connection %d: %d bytes in %d messages, %d in %d were sent", network, i, len(got), len(c.Messages), len(want), len(sent[i]))
			}
		}
	}
}

func mustOpen(t *testing.T) *Memory {
	t.Helper()
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fileOf is the descriptor of a socket.
func fileOf(t *testing.T, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(n uintptr) { fd = int(n) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
