package kind

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

func unixPair(t *testing.T, typ int) (a, b int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func sendAll(t *testing.T, fd int, all ...[]byte) {
	t.Helper()
	for _, b := range all {
		if n, err := unix.SendmsgN(fd, b, nil, nil, 0); err != nil || n != len(b) {
			t.Fatalf("sent %d of %d: %v", n, len(b), err)
		}
	}
}

// recvAll reads until nothing is left. "end" stands for end of file, another word for an error.
func recvAll(t *testing.T, fd int) (all []string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return all
		case err != nil:
			return append(all, err.Error())
		case n == 0 && from == nil && len(all) > 0 && all[len(all)-1] == "":
			return append(all[:len(all)-1], "end")
		}
		all = append(all, string(buf[:n]))
	}
}

var unixTypes = map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET}

func TestUnixPair(t *testing.T) {
	for name, typ := range unixTypes {
		t.Run(name, func(t *testing.T) {
			a, b := unixPair(t, typ)
			big := noise(100_000)
			sendAll(t, a, []byte("one"), []byte("two"), big)
			sendAll(t, b, []byte("back"))
			must(t, unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_SNDBUF, 300_000))
			_, got := roundTrip(t, a, b)
			for i, fd := range []int{a, b} {
				if was, is := recvAll(t, fd), recvAll(t, got[i]); !slices.Equal(was, is) {
					t.Errorf("end %d has %d messages, had %d", i, len(is), len(was))
				}
			}
			sendAll(t, got[1], []byte("more"))
			if all := recvAll(t, got[0]); !slices.Equal(all, []string{"more"}) {
				t.Errorf("through the new pair came %q", all)
			}
			if was, is := flagsOf(t, a), flagsOf(t, got[0]); was != is {
				t.Errorf("flags %#o, were %#o", is, was)
			}
			for i, fd := range []int{a, b} {
				was, err := peerCred(fd)
				must(t, err)
				is, err := peerCred(got[i])
				must(t, err)
				if !was.equal(is) {
					t.Errorf("SO_PEERCRED is %v, was %v", is, was)
				}
			}
		})
	}
}

// TestUnixEnds closes and shuts down ends in every way.
func TestUnixEnds(t *testing.T) {
	for name, typ := range unixTypes {
		for _, how := range []string{"closed", "unread", "rd", "wr", "rdwr"} {
			t.Run(name+"_"+how, func(t *testing.T) {
				a, b := unixPair(t, typ)
				sendAll(t, b, []byte("left"), []byte("over"))
				fds := []int{a, b}
				switch how {
				case "unread", "closed":
					if how == "unread" {
						sendAll(t, a, []byte("nobody reads this"))
					}
					must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), b, unix.O_CLOEXEC))
					fds = fds[:1]
				case "rd":
					must(t, unix.Shutdown(a, unix.SHUT_RD))
				case "wr":
					must(t, unix.Shutdown(a, unix.SHUT_WR))
				case "rdwr":
					must(t, unix.Shutdown(a, unix.SHUT_RDWR))
				}
				before := unixState(t, a)
				if name == "seqpacket" && how == "unread" { // reading a message would give the error first
					s := newStage(t)
					s.add(a)
					f := s.scene.Files[0]
					err := unixSock{}.Dump(f, s.scene, &image.File{})
					if now := unixState(t, a); err == nil || !strings.Contains(err.Error(), "behind an error") || now != before {
						t.Errorf("%v, and it is %s, was %s", err, now, before)
					}
					return
				}
				_, got := roundTrip(t, fds...)
				if now := unixState(t, a); now != before {
					t.Errorf("Dump left it as %s, was %s", now, before)
				}
				for i, fd := range fds {
					was, is := unixState(t, fd), unixState(t, got[i])
					if was != is {
						t.Errorf("end %d is %s, was %s", i, is, was)
					}
				}
				for i, fd := range fds {
					if was, is := unixUse(t, fd), unixUse(t, got[i]); was != is {
						t.Errorf("end %d gives %s, gave %s", i, is, was)
					}
				}
			})
		}
	}
}

// unixState is what is to be seen of a socket without using it.
func unixState(t *testing.T, fd int) string {
	t.Helper()
	ready, err := polled(fd, pollAny)
	must(t, err)
	all, err := unixSockets()
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	u := all[uint32(st.Ino)]
	if u == nil {
		t.Fatal("not listed")
	}
	in, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		in = -1 // it listens
	}
	off, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	must(t, err)
	cred, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED)
	must(t, err)
	return fmt.Sprintf("poll %#x, type %d, state %d, connected %v, shutdown %d, %d bytes, peek offset %d, passcred %d", ready, u.Type, u.State, u.HasPeer, u.Shutdown, in, off, cred)
}

// unixUse is what comes of reading and writing.
func unixUse(t *testing.T, fd int) string {
	t.Helper()
	_, werr := unix.SendmsgN(fd, []byte("x"), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	buf := make([]byte, 100)
	text := fmt.Sprint("write ", werr)
	for range 4 {
		n, err := unix.Read(fd, buf)
		text += fmt.Sprintf(", read %q %v", buf[:max(n, 0)], err)
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	must(t, err)
	return text + fmt.Sprint(", error ", code)
}

// TestUnixCredentials has messages with and without SCM_CREDENTIALS.
func TestUnixCredentials(t *testing.T) {
	for name, typ := range unixTypes {
		t.Run(name, func(t *testing.T) {
			a, b := unixPair(t, typ)
			sendAll(t, a, []byte("none"))
			must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
			sendAll(t, a, []byte("own"))
			_, err := unix.SendmsgN(a, []byte("other"), unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: 1234, Gid: 1235}), nil, 0)
			must(t, err)
			_, got := roundTrip(t, a, b)
			was, is := recvCreds(t, b), recvCreds(t, got[1])
			if was != is || !bytes.Contains([]byte(was), []byte("d2040000")) {
				t.Errorf("got  %s\nwant %s", is, was)
			}
		})
	}
}

func recvCreds(t *testing.T, fd int) (text string) {
	t.Helper()
	buf, oob := make([]byte, 100), make([]byte, 100)
	for {
		n, on, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT)
		if err != nil {
			return text
		}
		text += fmt.Sprintf("%q with %x; ", buf[:n], oob[:on])
	}
}

// TestUnixUnbound is a socket that was only made.
func TestUnixUnbound(t *testing.T) {
	for _, typ := range unixTypes {
		fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		_, got := roundTrip(t, fd)
		if was, is := unixState(t, fd), unixState(t, got[0]); was != is {
			t.Errorf("is %s, was %s", is, was)
		}
	}
}

// TestUnixForeign has the other end outside the tree, refused or cut off.
func TestUnixForeign(t *testing.T) {
	for name, typ := range unixTypes {
		t.Run(name, func(t *testing.T) {
			a, b := unixPair(t, typ)
			sendAll(t, b, []byte("left"))
			s := newStage(t)
			s.outside[unix.O_RDONLY] = 0
			s.scene.Outside = func(_, ino uint64, _ int) int {
				var st unix.Stat_t
				must(t, unix.Fstat(b, &st))
				if ino == st.Ino {
					return 1
				}
				return 0
			}
			s.add(a)
			refused(t, s.check(), "it is connected to pid 1 (", "unix=disconnect")
			s.scene.Policy = policy.Set{"unix": "disconnect"}
			wantFinding(t, s.check(), image.Lose, "it is connected to pid 1 (", "the restored one reads")
			s.dump()
			got, err := s.open()
			must(t, err)
			if n, err := unix.IoctlGetInt(got[0], unix.TIOCINQ); n != 4 || err != nil {
				t.Errorf("%d bytes wait in it", n)
			}
			want := map[string]string{ // writing to a closed datagram socket empties the queue
				"stream":    `write broken pipe, read "left" <nil>, read "" <nil>, read "" <nil>, read "" <nil>, error 0`,
				"seqpacket": `write broken pipe, read "left" <nil>, read "" <nil>, read "" <nil>, read "" <nil>, error 0`,
				"datagram":  `write connection refused, read "" resource temporarily unavailable, read "" resource temporarily unavailable, read "" resource temporarily unavailable, read "" resource temporarily unavailable, error 0`,
			}
			if use := unixUse(t, got[0]); use != want[name] {
				t.Errorf("it gives %s, want %s", use, want[name])
			}
			if all := recvAll(t, a); !slices.Equal(all, []string{"left"}) {
				t.Errorf("the old one has %q", all)
			}
		})
	}
}

// TestUnixServerOutside is of a client of a server outside the tree.
func TestUnixServerOutside(t *testing.T) {
	for _, sort := range []string{"path", "abstract"} {
		name := t.TempDir() + "/log"
		if sort == "abstract" {
			name = abstractName(t)
		}
		server := unixSocket(t, unix.SOCK_DGRAM, name)
		c := dialTo(t, unix.SOCK_DGRAM, "", name)
		_, got := closedTrip(t, c)
		sendAll(t, got[0], []byte("a line"))
		if all := recvAll(t, server); !slices.Equal(all, []string{"a line"}) {
			t.Errorf("the server got %q", all)
		}
		s := newStage(t)
		s.add(got[0])
		s.dump()
		must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), server, unix.O_CLOEXEC))
		again, err := s.open()
		must(t, err)
		if _, err := unix.Write(again[0], []byte("x")); err != unix.ECONNREFUSED || len(s.warned) != 1 || !strings.Contains(s.warned[0], "cannot be connected again") {
			t.Errorf("without a server: %v, warned %q", err, s.warned)
		}

		l := listener(t, unix.SOCK_STREAM, abstractName(t)+sort)
		d := dialTo(t, unix.SOCK_STREAM, "", abstractName(t)+sort)
		s = newStage(t)
		s.scene.Policy = policy.Set{"unix": "disconnect"}
		s.add(d)
		wantFinding(t, s.check(), image.Lose, "it waits to be accepted by a process that cannot be seen")
		s.dump()
		got, err = s.open()
		must(t, err)
		if n, err := unix.Read(got[0], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("read %d %v", n, err)
		}
		s = newStage(t)
		s.scene.Policy = policy.Set{"unix": "disconnect"}
		s.add(l)
		wantFinding(t, s.check(), image.Lose, "waits to be accepted by it: it is not restored")
		s.dump()
		must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), l, unix.O_CLOEXEC))
		must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), d, unix.O_CLOEXEC))
		got, err = s.open()
		must(t, err)
		if _, _, err := unix.Accept(got[0]); err != unix.EAGAIN {
			t.Errorf("accept: %v", err)
		}
	}
}

// TestUnixShared is of sockets that somebody outside the tree has too: another ckptfs that looks at
// the tree does not count.
func TestUnixShared(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_STREAM)
	l := listener(t, unix.SOCK_STREAM, abstractName(t))
	for _, c := range []struct {
		fds  []int
		sev  image.Severity
		what string
	}{
		{[]int{a, b}, image.Lose, "which is outside the tree, has this socket too"},
		{[]int{l}, image.Refuse, "which is outside the tree, listens on it too and keeps its name"},
	} {
		s := newStage(t)
		s.add(c.fds...)
		if s.outside[unix.O_RDONLY] = os.Getpid(); len(s.check()) > 0 {
			t.Errorf("of this very program: %v", s.check())
		}
		s.outside[unix.O_RDONLY] = 1
		wantFinding(t, s.check()[:1], c.sev, "pid 1 (", c.what)
	}
}
