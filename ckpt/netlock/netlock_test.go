package netlock

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// pair is a TCP connection over the loopback device; c is the end that is locked.
func pair(t *testing.T, network, addr string) (c, peer net.Conn, conn Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if peer, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); peer.Close() })
	of := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
	return c, peer, Conn{of(c.LocalAddr()), of(c.RemoteAddr())}
}

// comes tells whether what one end writes reaches the other within d.
func comes(t *testing.T, from, to net.Conn, d time.Duration) bool {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(d))
	_, err := to.Read(make([]byte, 1))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// TestLock: nothing passes in either direction while a connection is locked, another one is not
// touched, and all that was sent arrives after the release. The table is gone then.
func TestLock(t *testing.T) {
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			c, peer, conn := pair(t, network, addr)
			d, other, _ := pair(t, network, addr)
			l, err := Take([]Conn{conn})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release() // again, if something fails
			const moment = 300 * time.Millisecond
			if comes(t, c, peer, moment) || comes(t, peer, c, moment) {
				t.Error("a packet came through")
			}
			if !comes(t, d, other, 10*time.Second) || !comes(t, other, d, 10*time.Second) {
				t.Error("another connection is locked too")
			}
			for _, step := range []func() error{l.Hold, l.Back} {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if l, err = Take([]Conn{conn}); err != nil {
				t.Fatal(err)
			}
			if err := l.Release(); err != nil {
				t.Fatal(err)
			}
			for _, to := range []net.Conn{c, peer} {
				to.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := to.Read(make([]byte, 1)); err != nil {
					t.Errorf("after the release: %v", err)
				}
			}
			if have, err := list(); err != nil || len(have) > 0 {
				t.Errorf("%v, %v are left", have, err)
			}
		})
	}
}

// TestSweep: what a process left that is dead goes, what is held stays.
func TestSweep(t *testing.T) {
	_, _, dead := pair(t, "tcp4", "127.0.0.1:0")
	_, _, kept := pair(t, "tcp4", "127.0.0.1:0")
	l := &Lock{conns: []Conn{dead, kept}}
	defer l.Release()
	if err := l.set([]Conn{dead}, "pid 1 of 1", WorkTime); err != nil { // pid 1 began at another time
		t.Fatal(err)
	}
	if err := l.set([]Conn{kept}, held, HoldTime); err != nil {
		t.Fatal(err)
	}
	if n, err := Sweep(); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if have, err := list(); err != nil || len(have) != 1 || have[0].Conn != kept || have[0].owner != held {
		t.Errorf("%v, %v are left", have, err)
	}
	if n, err := Sweep(); n != 0 || err != nil {
		t.Errorf("swept %d again, %v", n, err)
	}
}

// TestBusy: what another ckptfs works on is refused; the name of the owner is in the error.
func TestBusy(t *testing.T) {
	_, _, conn := pair(t, "tcp4", "127.0.0.1:0")
	l := &Lock{conns: []Conn{conn}}
	defer l.Release()
	if err := l.set(l.conns, ownerOf(os.Getppid()), WorkTime); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(l.conns); err == nil {
		t.Error("it was taken")
	}
}

func TestKeys(t *testing.T) {
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::1]:65535"} {
		c := Conn{netip.MustParseAddrPort(s), netip.MustParseAddrPort(s)}
		if got, ok := connOf(c.key()); !ok || got != c {
			t.Errorf("%v is read as %v", c, got)
		}
	}
	for _, n := range []int{0, 1, 15, 17, 39, 41} {
		if _, ok := connOf(make([]byte, n)); ok {
			t.Errorf("%d bytes are a key", n)
		}
	}
}
