package kind

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// unixImage makes an image of records.
func (s *stage) unixImage(recs ...unixRec) {
	s.t.Helper()
	s.env.Manifest.Files = nil
	for i := range recs {
		rec := image.File{Kind: "unix", Flags: unix.O_RDWR, Path: "socket:[1]"}
		must(s.t, encodeRec(&rec, &recs[i]))
		s.env.Manifest.Files = append(s.env.Manifest.Files, rec)
	}
	clear(s.env.Shared)
}

// TestUnixHostile has records that no checkpoint writes.
func TestUnixHostile(t *testing.T) {
	const stream, dgram = unix.SOCK_STREAM, unix.SOCK_DGRAM
	root := &unixCred{PID: 1}
	file := &unixFile{Path: []byte("/x")}
	for what, recs := range map[string][]unixRec{
		"type 3":                            {{Type: unix.SOCK_RAW, Ino: 1}},
		"twice":                             {{Type: stream, Ino: 1}, {Type: stream, Ino: 1}},
		"socket 0 twice":                    {{Type: stream}},
		"shutdown 4":                        {{Type: stream, Ino: 1, Shutdown: 4}},
		"an error that it cannot":           {{Type: stream, Ino: 1, Reset: true}},
		"option 9999":                       {{Type: stream, Ino: 1, Opts: []unixOpt{{9999, nil}}}},
		"option 16 of a unix socket with 3": {{Type: stream, Ino: 1, Opts: []unixOpt{{16, make([]byte, 3)}}}},
		"filter of 7":                       {{Type: stream, Ino: 1, Filter: make([]byte, 7)}},
		"without SO_PEERCRED":               {{Type: stream, Ino: 1, Connected: true}},
		"other end 2 is not one":            {{Type: stream, Ino: 1, Connected: true, Peer: 2, Cred: root}},
		"other end 1 is not one":            {{Type: dgram, Ino: 1, Connected: true, Peer: 1}},
		"two different SO_PEERCRED":         {{Type: stream, Ino: 1, Connected: true, Peer: 2, Cred: root}, {Type: stream, Ino: 2, Connected: true, Peer: 1, Cred: &unixCred{PID: 2}}},
		"one without a name":                {{Type: dgram, Ino: 1, Connected: true, Peer: 2}, {Type: dgram, Ino: 2}},
		"no other end or name":              {{Type: stream, Ino: 1, Connected: true, Accepted: true, Cred: root}},
		"name of 200 bytes":                 {{Type: stream, Ino: 1, Name: make([]byte, 200)}},
		"and no file":                       {{Type: stream, Ino: 1, Name: []byte("x")}},
		"name \"y\" and no file":            {{Type: stream, Ino: 1, Name: []byte("y"), File: &unixFile{Path: []byte("y")}}},
		"does not listen":                   {{Type: stream, Ino: 1, Waiting: []uint64{2}}, {Type: stream, Ino: 2, Connected: true, Cred: root, By: root}},
		"is not there, or twice":            {{Type: stream, Ino: 1, Name: []byte("x"), File: file, Listening: true, Cred: root, Waiting: []uint64{2}}},
		"cannot wait":                       {{Type: stream, Ino: 1, Name: []byte("x"), File: file, Listening: true, Cred: root, Waiting: []uint64{1}}},
		"cannot listen":                     {{Type: dgram, Ino: 1, Listening: true}},
		"queue of 4097":                     {{Type: stream, Ino: 1, Msgs: make([]unixMsg, maxUnixMsgs+1)}},
		"message of -1 bytes":               {{Type: stream, Ino: 1, Msgs: []unixMsg{{Len: -1}}}},
		"empty message in a stream":         {{Type: stream, Ino: 1, Msgs: []unixMsg{{}}}},
		"mark 2":                            {{Type: dgram, Ino: 1, Msgs: []unixMsg{{Len: 1, Mark: liveOOB}}}},
		"under way with number 9":           {{Type: dgram, Ino: 1, Msgs: []unixMsg{{Files: []image.ObjRef{9}}}}},
		"cannot be connected again":         {{Type: stream, Ino: 1, Reconnect: true}},
		"nobody can send":                   {{Type: stream, Ino: 1, Msgs: []unixMsg{{Mark: readOOB}}}},
		"less for it than it says":          {{Type: stream, Ino: 1, Connected: true, Cred: root, Msgs: []unixMsg{{Len: 1}}}},
	} {
		s := newStage(t)
		s.unixImage(recs...)
		what = strings.TrimPrefix(what, "socket 0 ")
		fd, err := (unixSock{}).Open(&s.env.Manifest.Files[0], s.env)
		if err == nil {
			unix.Close(fd)
			t.Errorf("%s was accepted", what)
		} else if !strings.Contains(err.Error(), what) {
			t.Errorf("%v does not say %q", err, what)
		}
	}
	s := newStage(t)
	s.unixImage(unixRec{Type: stream, Ino: 1, Ended: []unixEnded{{PID: -1}}})
	if _, err := (unixSock{}).Dead(&s.env.Manifest.Files[0]); err == nil {
		t.Error("a process -1 was accepted")
	}
}

// TestUnixNoHelp is of a restore for a user who may not have everything.
func TestUnixNoHelp(t *testing.T) {
	s := newStage(t)
	s.env.Help = false
	s.env.Manifest.Tasks = []image.Task{{PID: int32(os.Getpid()), Threads: []image.Thread{{Creds: image.Creds{UID: [4]uint32{1234, 1234, 1234, 1234}, GID: [4]uint32{5, 5, 5, 5}, Groups: []uint32{6}}}}}}
	own := func(uid, gid uint32, groups ...uint32) unixRec {
		return unixRec{Type: unix.SOCK_STREAM, Ino: 1, Connected: true, Cred: &unixCred{PID: int32(os.Getpid()), UID: uid, GID: gid, Groups: groups}}
	}
	for _, r := range []unixRec{own(0, 5), own(1234, 0), own(1234, 5, 0)} {
		s.unixImage(r)
		if _, err := readUnixWorld(s.env); err == nil || !strings.Contains(err.Error(), "which no process of it has") {
			t.Errorf("%+v: %v", r.Cred, err)
		}
	}
	msg := own(1234, 5)
	msg.Msgs = []unixMsg{{Len: 1, Cred: &unixCred{PID: 1}}}
	s.unixImage(msg)
	if _, err := readUnixWorld(s.env); err == nil || !strings.Contains(err.Error(), "which no process of it has") {
		t.Errorf("a message of root: %v", err)
	}
	s.unixImage(own(1234, 5, 6))
	_, err := readUnixWorld(s.env)
	must(t, err)

	// What he may not do is an error that nobody tries to help with.
	s.unixImage(unixRec{Type: unix.SOCK_STREAM, Ino: 1, Name: []byte("/proc/x"), File: &unixFile{Path: []byte("/proc/y")}})
	if _, err := (unixSock{}).Open(&s.env.Manifest.Files[0], s.env); err == nil || errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "only root") {
		t.Errorf("%v", err)
	}
}

func FuzzUnixWorld(f *testing.F) {
	e := &Env{Manifest: &image.Manifest{}, Blob: func(image.ObjRef) ([]byte, error) { return nil, nil }, Shared: map[string]any{}}
	for _, r := range []unixRec{
		{Type: 1, Ino: 1, Connected: true, Peer: 2, Cred: &unixCred{PID: 1}, Name: []byte("\x00x"), Accepted: true},
		{Type: 1, Ino: 2, Connected: true, Peer: 1, Cred: &unixCred{PID: 1}, Opts: []unixOpt{{16, []byte{1, 0, 0, 0}}}, Msgs: []unixMsg{{Len: 3, Mark: 1, From: []byte("a"), Files: []image.ObjRef{1}}}},
		{Type: 2, Ino: 1, Name: []byte("/a/b\x00"), File: &unixFile{Path: []byte("/a/b")}, Ended: []unixEnded{{5, 9}}},
	} {
		var rec image.File
		if err := encodeRec(&rec, &r); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(rec.Rec), []byte(rec.Rec))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		e.Manifest.Files = []image.File{{Kind: "unix", Rec: a}, {Kind: "unix", Rec: b}}
		_, _ = readUnixWorld(e)
		_, _ = (unixSock{}).Dead(&e.Manifest.Files[0])
		_, _ = Carried(&e.Manifest.Files[1])
	})
}

// TestUnixAsUser makes names on a thread without privileges: what its user may not do is not done.
func TestUnixAsUser(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	own, secret := dir+"/own", dir+"/secret"
	must(t, os.Mkdir(own, 0o700))
	must(t, os.Chown(own, 1234, 1234))
	must(t, os.Mkdir(secret, 0o700))
	open := func(name string, uid int, help bool) (s *stage, err error) {
		fd := listener(t, unix.SOCK_STREAM, name)
		must(t, os.Chown(name, uid, uid))
		s = newStage(t)
		s.add(fd)
		s.dump()
		must(t, unix.Close(fd))
		s.env.Help = help
		s.env.Manifest.Tasks = []image.Task{{PID: int32(os.Getpid()), Threads: []image.Thread{{Creds: image.Creds{}}}}}
		s.env.In = func(_ int, f func(Process) error) error { // on the tracing thread, which has our privileges
			done := make(chan error)
			go func() { done <- f(&self{pid: int32(os.Getpid())}) }()
			return <-done
		}
		try := func() {
			var fd int
			if fd, err = (unixSock{}).Open(&s.env.Manifest.Files[0], s.env); err == nil {
				unix.Close(fd)
			}
		}
		if asNobody(t, try); errors.Is(err, os.ErrPermission) && help {
			try() // as the driver does
		}
		return s, err
	}
	for name, help := range map[string]bool{own + "/s": false, own + "/helped": true, secret + "/helped": true} {
		_, err := open(name, 1234, help)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(name, &st))
		if st.Uid != 1234 || st.Gid != 1234 {
			t.Errorf("%s belongs to %d %d", name, st.Uid, st.Gid)
		}
	}
	for name, uid := range map[string]int{secret + "/s": 1234, own + "/root": 0} {
		if _, err := open(name, uid, false); err == nil || errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if dir, err := os.Getwd(); err != nil || strings.HasPrefix(dir, own) {
		t.Errorf("the working directory is %s %v", dir, err)
	}
}
