package kind

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// urgent reads a stream byte by byte, with the mark and what is out of band.
func urgent(t *testing.T, fd int) (text string) {
	t.Helper()
	b := make([]byte, 1)
	for range 40 {
		at, err := unix.IoctlGetInt(fd, siocAtMark)
		must(t, err)
		if at != 0 {
			text += "|"
			if n, _, err := unix.Recvfrom(fd, b, unix.MSG_OOB|unix.MSG_DONTWAIT); err == nil && n == 1 {
				text += "(" + string(b) + ")"
			}
		}
		n, err := unix.Read(fd, b)
		if err != nil || n == 0 {
			return text
		}
		text += string(b)
	}
	return text + "..."
}

func sendOOB(t *testing.T, fd int, text string) {
	t.Helper()
	_, err := unix.SendmsgN(fd, []byte(text), nil, nil, unix.MSG_OOB)
	must(t, err)
}

// TestUnixOOB has out-of-band bytes at all places.
func TestUnixOOB(t *testing.T) {
	for name, make := range map[string]func(a, b int){
		"middle":      func(a, b int) { sendAll(t, a, []byte("12345")); sendOOB(t, a, "O"); sendAll(t, a, []byte("tail")) },
		"first":       func(a, b int) { sendOOB(t, a, "O"); sendAll(t, a, []byte("tail")) },
		"last":        func(a, b int) { sendAll(t, a, []byte("12345")); sendOOB(t, a, "O") },
		"only":        func(a, b int) { sendOOB(t, a, "O") },
		"behind more": func(a, b int) { sendAll(t, a, []byte("12")); sendOOB(t, a, "345O"); sendAll(t, a, []byte("tail")) },
		"at the mark": func(a, b int) {
			sendAll(t, a, []byte("12345"))
			sendOOB(t, a, "O")
			sendAll(t, a, []byte("tail"))
			_, err := unix.Read(b, make([]byte, 5))
			must(t, err)
		},
		"read": func(a, b int) {
			sendAll(t, a, []byte("12345"))
			sendOOB(t, a, "O")
			_, _, err := unix.Recvfrom(b, make([]byte, 1), unix.MSG_OOB)
			must(t, err)
			sendAll(t, a, []byte("tail"))
		},
		"read at the mark": func(a, b int) {
			sendOOB(t, a, "O")
			_, _, err := unix.Recvfrom(b, make([]byte, 1), unix.MSG_OOB)
			must(t, err)
			sendAll(t, a, []byte("tail"))
		},
		"two": func(a, b int) {
			sendAll(t, a, []byte("1"))
			sendOOB(t, a, "O")
			_, _, err := unix.Recvfrom(b, make([]byte, 1), unix.MSG_OOB)
			must(t, err)
			sendAll(t, a, []byte("2"))
			sendOOB(t, a, "P")
			sendAll(t, a, []byte("3"))
		},
		"replaced": func(a, b int) {
			sendOOB(t, a, "O")
			sendAll(t, a, []byte("2"))
			sendOOB(t, a, "P")
			sendAll(t, a, []byte("3"))
		},
		"inline": func(a, b int) {
			must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
			sendAll(t, a, []byte("1"))
			sendOOB(t, a, "O")
			sendAll(t, a, []byte("2"))
		},
		"credentials": func(a, b int) {
			sendAll(t, a, []byte("1"))
			must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
			sendOOB(t, a, "O")
			sendAll(t, a, []byte("2"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := unixPair(t, unix.SOCK_STREAM)
			make(a, b)
			before := unixState(t, b)
			_, got := roundTrip(t, a, b)
			if now := unixState(t, b); now != before {
				t.Errorf("Dump left it as %s, was %s", now, before)
			}
			if now := unixState(t, got[1]); now != before {
				t.Errorf("it is %s, was %s", now, before)
			}
			if was, is := urgent(t, b), urgent(t, got[1]); was != is {
				t.Errorf("it reads as %q, was %q", is, was)
			} else {
				t.Logf("%q", was)
			}
		})
	}
}

// rights sends files with data.
func rights(t *testing.T, fd int, data string, fds ...int) {
	t.Helper()
	_, err := unix.SendmsgN(fd, []byte(data), unix.UnixRights(fds...), nil, 0)
	must(t, err)
}

// recvRights reads one message and its files.
func recvRights(t *testing.T, fd, size int) (string, []int) {
	t.Helper()
	b, oob := make([]byte, size), make([]byte, 2048)
	n, on, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	must(t, err)
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	must(t, err)
	var all []int
	for i := range msgs {
		if msgs[i].Header.Type == unix.SCM_RIGHTS {
			fds, err := unix.ParseUnixRights(&msgs[i])
			must(t, err)
			all = append(all, fds...)
		}
	}
	t.Cleanup(func() { closeOwn(all) })
	return string(b[:n]), all
}

// fly adds the files that are under way, as the driver does.
func (s *stage) fly() {
	s.t.Helper()
	for i := 0; i < len(s.scene.Files); i++ {
		f := s.scene.Files[i]
		fds, err := s.scene.InFlight(f)
		must(s.t, err)
		for _, fd := range fds {
			s.t.Cleanup(func() { unix.Close(fd) })
			if _, err := s.scene.refOf(fd); err != nil {
				s.add(fd)[0].Carrier = f
			}
		}
	}
	s.scene.Still = true
}

// TestUnixFlight has files under way: open elsewhere or not, in sockets that are under way themselves.
func TestUnixFlight(t *testing.T) {
	for name, typ := range unixTypes {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(dir+"/f", []byte("content"), 0o600))
			file := open(t, dir+"/f", unix.O_RDWR)
			_, err := unix.Seek(file, 3, unix.SEEK_SET)
			must(t, err)
			gone := open(t, dir+"/f", unix.O_RDONLY)
			_, err = unix.Seek(gone, 5, unix.SEEK_SET)
			must(t, err)
			a, b := unixPair(t, typ)
			c, d := unixPair(t, typ)
			e, f := unixPair(t, unix.SOCK_STREAM)
			sendAll(t, a, []byte("first"))
			rights(t, a, "files", file, gone, file)
			sendAll(t, a, []byte("between"))
			rights(t, c, "deep", e)
			rights(t, c, "itself", d)
			sendAll(t, f, []byte("from f"))
			rights(t, a, "socket", d)
			for _, fd := range []int{gone, d, e} {
				must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), fd, unix.O_CLOEXEC))
			}
			s := newStage(t)
			s.add(a, b, c, f, file)
			if all := s.check(); len(all) > 0 {
				t.Fatal(all)
			}
			s.fly()
			if len(s.scene.Files) != 8 {
				t.Fatalf("%d files, not 8", len(s.scene.Files))
			}
			if all := s.check(); len(all) > 0 {
				t.Fatal(all)
			}
			s.dump()
			opened := map[image.ObjRef]int{}
			s.env.File = func(ref image.ObjRef) (int, error) {
				if _, ok := opened[ref]; !ok {
					rec := &s.env.Manifest.Files[ref-1]
					fd, err := ByName(rec.Kind).Open(rec, s.env)
					if err != nil {
						return -1, err
					}
					opened[ref] = fd
				}
				return dup(opened[ref])
			}
			got, err := s.open()
			must(t, err)
			for _, q := range [][3]int{{b, c, file}, {got[1], got[2], opened[5]}} {
				checkFlight(t, typ, q[0], q[1], q[2])
			}
		})
	}
}

// checkFlight reads what TestUnixFlight has sent.
func checkFlight(t *testing.T, typ, b, c, file int) {
	t.Helper()
	buf := make([]byte, 99)
	if typ == unix.SOCK_STREAM {
		text, fds := recvRights(t, b, 4)
		if text != "firs" || len(fds) > 0 {
			t.Errorf("got %q with %d files", text, len(fds))
		}
		text, fds = recvRights(t, b, 99)
		if text != "tfiles" || len(fds) != 3 {
			t.Fatalf("got %q with %d files", text, len(fds))
		}
		checkFiles(t, fds, file)
		text, fds = recvRights(t, b, 99)
		if text != "betweensocket" || len(fds) != 1 {
			t.Fatalf("got %q with %d files", text, len(fds))
		}
		checkNested(t, fds[0], c)
		return
	}
	var got []string
	for range 4 {
		text, fds := recvRights(t, b, 99)
		got = append(got, fmt.Sprint(text, len(fds)))
		switch len(fds) {
		case 3:
			checkFiles(t, fds, file)
		case 1:
			checkNested(t, fds[0], c)
		}
	}
	if !slices.Equal(got, []string{"first0", "files3", "between0", "socket1"}) {
		t.Errorf("got %q", got)
	}
	if n, err := unix.Read(b, buf); err != unix.EAGAIN {
		t.Errorf("and %d bytes %v", n, err)
	}
}

func checkFiles(t *testing.T, fds []int, file int) {
	t.Helper()
	for i, want := range []int64{3, 5, 3} {
		if pos, err := unix.Seek(fds[i], 0, unix.SEEK_CUR); pos != want || err != nil {
			t.Errorf("file %d is at %d %v, not %d", i, pos, err, want)
		}
	}
	if !same(t, fds[0], fds[2]) || !same(t, fds[0], file) || same(t, fds[0], fds[1]) {
		t.Error("the files are not shared as they were")
	}
}

func checkNested(t *testing.T, d, c int) {
	t.Helper()
	text, fds := recvRights(t, d, 4)
	if text != "deep" || len(fds) != 1 {
		t.Fatalf("got %q with %d files", text, len(fds))
	}
	if all := recvAll(t, fds[0]); !slices.Equal(all, []string{"from f"}) {
		t.Errorf("the socket under way has %q", all)
	}
	text, fds = recvRights(t, d, 99)
	if text != "itself" || len(fds) != 1 || !same(t, fds[0], d) {
		t.Errorf("got %q with %d files", text, len(fds))
	}
	sendAll(t, c, []byte("more"))
	if all := recvAll(t, d); !slices.Equal(all, []string{"more"}) {
		t.Errorf("got %q", all)
	}
}

// TestUnixFlightRefused has files under way that no process could give back.
func TestUnixFlightRefused(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_SEQPACKET)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	must(t, err)
	rights(t, a, "x", ep)
	unix.Close(ep)
	s := newStage(t)
	s.add(a, b)
	s.fly()
	var all []image.Finding
	for _, f := range s.scene.Files {
		all = append(all, Check(f, s.scene)...)
	}
	refused(t, all, "under way in socket:[", "no process has it open")
	if !strings.Contains(all[0].String(), fmt.Sprint("fd ", b)) {
		t.Errorf("%v does not name the socket", all[0])
	}
}
