package kind

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unixSocket makes a socket with a name.
func unixSocket(t *testing.T, typ int, name string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	if name != "" {
		must(t, addressed(unix.SYS_BIND, fd, sockaddr([]byte(name))))
	}
	return fd
}

// listener listens at once.
func listener(t *testing.T, typ int, name string) int {
	t.Helper()
	fd := unixSocket(t, typ, name)
	must(t, unix.Listen(fd, 7))
	return fd
}

func dialTo(t *testing.T, typ int, own, name string) int {
	t.Helper()
	fd := unixSocket(t, typ, own)
	must(t, addressed(unix.SYS_CONNECT, fd, sockaddr([]byte(name))))
	return fd
}

func acceptFrom(t *testing.T, l int) int {
	t.Helper()
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// names are getsockname, getpeername and SO_PEERCRED.
func unixNames(t *testing.T, fd int) string {
	t.Helper()
	own, err := socketAddr(fd, unix.SYS_GETSOCKNAME)
	must(t, err)
	peer, perr := socketAddr(fd, unix.SYS_GETPEERNAME)
	cred, err := peerCred(fd)
	must(t, err)
	return fmt.Sprintf("%q to %q (%v) cred %+v, %s", own, peer, errors.Unwrap(perr), cred, unixState(t, fd))
}

// closedTrip is roundTrip of files that are closed before they are opened again, as names are taken
// otherwise.
func closedTrip(t *testing.T, fds ...int) (*stage, []int) {
	t.Helper()
	s := newStage(t)
	s.add(fds...)
	if all := s.check(); len(all) > 0 {
		t.Fatal(all)
	}
	before := make([]string, len(fds))
	for i, fd := range fds {
		before[i] = unixNames(t, fd)
	}
	s.dump()
	for i, fd := range fds {
		if now := unixNames(t, fd); now != before[i] {
			t.Errorf("Dump left it as\n%s, was\n%s", now, before[i])
		}
	}
	for _, fd := range fds {
		must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), fd, unix.O_CLOEXEC))
	}
	got, err := s.open()
	must(t, err)
	for i, fd := range got {
		if now := unixNames(t, fd); now != before[i] {
			t.Errorf("it is\n%s, was\n%s", now, before[i])
		}
	}
	return s, got
}

func abstractName(t *testing.T) string { return fmt.Sprintf("\x00ckptfs %s %d", t.Name(), os.Getpid()) }

// TestUnixListen has servers with clients that were accepted, by names of all sorts.
func TestUnixListen(t *testing.T) {
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		for _, sort := range []string{"path", "abstract", "relative", "deleted", "renamed", "longest"} {
			t.Run(fmt.Sprint(sort, typ), func(t *testing.T) {
				dir := t.TempDir()
				t.Chdir(dir)
				name, at := dir+"/s", dir+"/s"
				switch sort {
				case "abstract":
					name = abstractName(t)
				case "relative":
					name = "s"
				case "longest":
					name = strings.Repeat("x", 108)
					at = dir + "/" + name
				}
				l := listener(t, typ, name)
				if sort != "abstract" {
					must(t, os.Chmod(at, 0o640))
					must(t, os.Chown(at, 1234, 1235))
				}
				c := dialTo(t, typ, "", name)
				a := acceptFrom(t, l)
				gone := dialTo(t, typ, "", name)
				b := acceptFrom(t, l)
				must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), gone, unix.O_CLOEXEC))
				left := dialTo(t, typ, "", name)
				x := acceptFrom(t, l)
				must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), x, unix.O_CLOEXEC))
				sendAll(t, c, []byte("to server"))
				sendAll(t, a, []byte("to client"))
				switch sort {
				case "deleted":
					must(t, os.Remove(at))
				case "renamed":
					must(t, os.Rename(at, dir+"/other"))
					at = dir + "/other"
				}
				t.Chdir("/")
				_, got := closedTrip(t, l, c, a, b, left)
				if all := recvAll(t, got[2]); !slices.Equal(all, []string{"to server"}) {
					t.Errorf("the server got %q", all)
				}
				if all := recvAll(t, got[1]); !slices.Equal(all, []string{"to client"}) {
					t.Errorf("the client got %q", all)
				}
				var st unix.Stat_t
				if err := unix.Lstat(at, &st); (err == nil) != (sort != "abstract" && sort != "deleted") {
					t.Errorf("socket file: %v", err)
				} else if err == nil && (st.Mode != unix.S_IFSOCK|0o640 || st.Uid != 1234 || st.Gid != 1235) {
					t.Errorf("socket file has mode %#o and owner %d %d", st.Mode, st.Uid, st.Gid)
				}
				if files, _ := os.ReadDir(dir); len(files) > 1 {
					t.Errorf("the folder has %v", files)
				}
				if sort == "deleted" {
					return
				}
				t.Chdir(dir)
				if sort == "renamed" {
					name = "other"
				}
				d := dialTo(t, typ, "", name)
				e := acceptFrom(t, got[0])
				sendAll(t, d, []byte("new"))
				if all := recvAll(t, e); !slices.Equal(all, []string{"new"}) {
					t.Errorf("a new connection gave %q", all)
				}
			})
		}
	}
}

// TestUnixWaiting has connections that nobody has accepted yet.
func TestUnixWaiting(t *testing.T) {
	name := t.TempDir() + "/s"
	l := listener(t, unix.SOCK_STREAM, name)
	one, two := dialTo(t, unix.SOCK_STREAM, "", name), dialTo(t, unix.SOCK_STREAM, t.TempDir()+"/client", name)
	_, got := closedTrip(t, two, l, one)
	sendAll(t, got[2], []byte("one"))
	sendAll(t, got[0], []byte("two"))
	for _, want := range []string{"one", "two"} {
		if all := recvAll(t, acceptFrom(t, got[1])); !slices.Equal(all, []string{want}) {
			t.Errorf("accepted %q, want %s", all, want)
		}
	}

	c := dialTo(t, unix.SOCK_STREAM, "", name)
	must(t, unix.Sendto(c, []byte("x"), unix.MSG_OOB, nil))
	s := newStage(t)
	s.add(got[1], c)
	refused(t, s.check(), "a connection waits to be accepted by it that data was sent on, and an out-of-band byte waits in it")
	s = newStage(t)
	s.outside[unix.O_RDONLY] = 1
	s.add(c)
	refused(t, s.check(), "it waits to be accepted by pid 1 (")
	must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), c, unix.O_CLOEXEC))
	s = newStage(t)
	s.add(got[1])
	refused(t, s.check(), "whose other end was closed")
}

// TestUnixDatagrams has servers as syslog is, and messages from many.
func TestUnixDatagrams(t *testing.T) {
	for _, sort := range []string{"path", "abstract", "deleted"} {
		t.Run(sort, func(t *testing.T) {
			dir := t.TempDir()
			name, own := dir+"/server", dir+"/client"
			if sort == "abstract" {
				name, own = abstractName(t), abstractName(t)+"client"
			}
			server := unixSocket(t, unix.SOCK_DGRAM, name)
			a := dialTo(t, unix.SOCK_DGRAM, own, name)
			b := dialTo(t, unix.SOCK_DGRAM, "", name)
			gone := dialTo(t, unix.SOCK_DGRAM, own+"2", name)
			sendAll(t, a, []byte("a"))
			sendAll(t, b, []byte("b"), nil)
			sendAll(t, gone, []byte("c"))
			must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), gone, unix.O_CLOEXEC))
			sendAll(t, a, []byte("a again"))
			dead := unixSocket(t, unix.SOCK_DGRAM, own+"3")
			left := dialTo(t, unix.SOCK_DGRAM, "", own+"3")
			must(t, unix.Dup3(open(t, "/dev/null", unix.O_RDONLY), dead, unix.O_CLOEXEC))
			if sort == "deleted" {
				must(t, os.Remove(name))
			}
			_, got := closedTrip(t, b, server, a, left)
			var all []string
			buf := make([]byte, 99)
			for {
				n, from, err := unix.Recvfrom(got[1], buf, unix.MSG_DONTWAIT)
				if err != nil {
					break
				}
				who := ""
				if u, ok := from.(*unix.SockaddrUnix); ok {
					who = u.Name
				}
				all = append(all, fmt.Sprintf("%s %q", buf[:n], strings.ReplaceAll(who, "@", "\x00")))
			}
			want := []string{`a "` + own + `"`, `b ""`, ` ""`, `c "` + own + `2"`, `a again "` + own + `"`}
			for i := range want {
				want[i] = strings.ReplaceAll(want[i], "\x00", `\x00`)
			}
			if !slices.Equal(all, want) {
				t.Errorf("the server got %q, want %q", all, want)
			}
			sendAll(t, got[0], []byte("more"))
			if all := recvAll(t, got[1]); !slices.Equal(all, []string{"more"}) {
				t.Errorf("the server got %q", all)
			}
			if _, err := unix.Write(got[3], []byte("x")); err != unix.ECONNREFUSED {
				t.Errorf("write to a closed server: %v", err)
			}
		})
	}
}

// TestUnixBound has sockets with names that are not connected, and a pair with names.
func TestUnixBound(t *testing.T) {
	dir := t.TempDir()
	auto := unixSocket(t, unix.SOCK_STREAM, "")
	must(t, bindAuto(auto))
	x, y := unixPair(t, unix.SOCK_DGRAM)
	must(t, addressed(unix.SYS_BIND, x, sockaddr([]byte(dir+"/x"))))
	sendAll(t, x, []byte("from x"))
	closedTrip(t, auto, unixSocket(t, unix.SOCK_STREAM, dir+"/bound"), x, y)
	var st unix.Stat_t
	must(t, unix.Lstat(dir+"/bound", &st))
	must(t, unix.Lstat(dir+"/x", &st))
}

// TestUnixTaken has names that are not free any more.
func TestUnixTaken(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir + "/s", abstractName(t)} {
		l := listener(t, unix.SOCK_STREAM, name)
		s := newStage(t)
		s.add(l)
		recs := s.dump()
		s.env.Manifest.Tasks = nil // the test is somebody else then
		for _, k := range []Checker{unixSock{}} {
			_, err := k.CheckOpen(&recs[0], s.env)
			want := fmt.Sprintf("in use by pid %d (", os.Getpid())
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), showName([]byte(name))) {
				t.Errorf("%v", err)
			}
		}
		if isPath([]byte(name)) {
			must(t, os.Remove(name))
			must(t, os.WriteFile(name, nil, 0o600))
			_, err := unixSock{}.CheckOpen(&recs[0], s.env)
			if err == nil || !strings.Contains(err.Error(), "there is a regular file now") {
				t.Errorf("%v", err)
			}
			must(t, os.Remove(name))
			must(t, os.Remove(dir))
			if _, err = (unixSock{}).CheckOpen(&recs[0], s.env); err == nil || !strings.Contains(err.Error(), "folder") {
				t.Errorf("%v", err)
			}
		}
	}
}

func TestShowName(t *testing.T) {
	for name, want := range map[string]string{"/a/b\x00": "/a/b", "\x00abc\x00d": "@abc@d", "": "@"} {
		if got := showName([]byte(name)); got != want {
			t.Errorf("%q is shown as %q", name, got)
		}
	}
	if !bytes.Equal(sockaddr([]byte("x\x00")), []byte("\x01\x00x\x00")) {
		t.Error("sockaddr")
	}
}

// TestUnixNameUndone: a restore that fails leaves no file behind that nobody has bound.
func TestUnixNameUndone(t *testing.T) {
	dir := t.TempDir()
	kept, gone := dir+"/kept", dir+"/gone"
	s := newStage(t)
	var undos []func() error
	s.env.Undo = func(f func() error) { undos = append(undos, f) }
	fds := []int{listener(t, unix.SOCK_STREAM, kept), unixSocket(t, unix.SOCK_DGRAM, gone)}
	goneThenOpen(t, s, fds...)
	for _, name := range []string{kept, gone} {
		if _, err := os.Lstat(name); err != nil {
			t.Fatal(err)
		}
	}
	must(t, os.Remove(kept)) // and somebody else takes the name
	other := unixSocket(t, unix.SOCK_DGRAM, kept)
	for _, undo := range undos {
		must(t, undo())
	}
	if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := os.Lstat(kept); err != nil {
		t.Errorf("the file of somebody else is gone: %v", err)
	}
	unix.Close(other)
}
