package kind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

func newInotify(t *testing.T, flags int) int {
	t.Helper()
	fd, err := unix.InotifyInit1(flags | unix.IN_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func addInotify(t *testing.T, fd int, path string, mask uint32) int {
	t.Helper()
	wd, err := unix.InotifyAddWatch(fd, path, mask)
	if err != nil {
		t.Fatalf("inotify_add_watch %s: %v", path, err)
	}
	return wd
}

// readEvents takes out what waits to be read.
func readEvents(t *testing.T, fd int) string {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	must(t, err)
	if n == 0 {
		return ""
	}
	b := make([]byte, n)
	_, err = unix.Read(fd, b)
	must(t, err)
	return string(b)
}

func TestInotify(t *testing.T) {
	dir := t.TempDir()
	path := file(t, filepath.Join(dir, "f\xff odd"), "x")
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(path, link))
	for _, flags := range []int{0, unix.IN_NONBLOCK} {
		roundTrip(t, newInotify(t, flags))
		fd := newInotify(t, flags)
		addInotify(t, fd, dir, unix.IN_CREATE|unix.IN_EXCL_UNLINK)
		for range 3000 { // numbers that are free
			_, err := unix.InotifyRmWatch(fd, uint32(addInotify(t, fd, path, unix.IN_OPEN)))
			must(t, err)
			readEvents(t, fd)
		}
		addInotify(t, fd, path, unix.IN_MODIFY|unix.IN_ONESHOT)
		addInotify(t, fd, link, unix.IN_ATTRIB|unix.IN_DONT_FOLLOW)
		addInotify(t, fd, "/", unix.IN_DELETE_SELF)
		addInotify(t, fd, "/proc", unix.IN_DELETE_SELF)
		addInotify(t, fd, "/dev/null", unix.IN_DELETE_SELF)
		_, got := roundTrip(t, fd)
		if s := readEvents(t, got[0]); s != "" {
			t.Errorf("there are events already: %q", s)
		}
		must(t, os.WriteFile(path, []byte("longer"), 0))
		must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
		if s := readEvents(t, got[0]); !strings.Contains(s, "new") {
			t.Errorf("the restored one tells %q", s)
		}
		if wd := addInotify(t, got[0], t.TempDir(), unix.IN_OPEN); wd != 3007 {
			t.Errorf("the next number is %d", wd)
		}
		must(t, os.Remove(filepath.Join(dir, "new")))
	}
}

// TestInotifyQuiet looks for paths and sees no event by that.
func TestInotifyQuiet(t *testing.T) {
	fd := newInotify(t, 0)
	path := file(t, filepath.Join(t.TempDir(), "f"), "x")
	for _, p := range []string{filepath.Dir(path), path, "/", "/tmp", "/proc"} {
		addInotify(t, fd, p, unix.IN_OPEN|unix.IN_CLOSE|unix.IN_ACCESS|unix.IN_ATTRIB)
	}
	for try := 1; ; try++ {
		readEvents(t, fd)
		s := newStage(t)
		s.noisy = true // its queue: what was caused by us is looked for below
		s.add(fd)
		if err := image.Refusals(s.check()); err != nil && try < 200 {
			continue // others open things in / and /tmp, too
		} else if err != nil {
			t.Fatal(err)
		}
		s.dump()
		if s := readEvents(t, fd); strings.Contains(s, "f") {
			t.Errorf("the checkpoint caused %q", s)
		}
		return
	}
}

// TestInotifyStart takes out what happened while the rest was restored.
func TestInotifyStart(t *testing.T) {
	for _, flags := range []int{0, unix.IN_NONBLOCK} {
		fd := newInotify(t, flags)
		dir := t.TempDir()
		addInotify(t, fd, dir, unix.IN_CREATE)
		s, got := roundTrip(t, fd)
		for _, n := range []string{"a", "b", strings.Repeat("c", 255)} {
			file(t, filepath.Join(dir, n), "")
		}
		must(t, inotify{}.Start(&s.env.Manifest.Files[0], got[0], &self{}))
		if s := readEvents(t, got[0]); s != "" {
			t.Errorf("left over: %q", s)
		}
		if fl, err := unix.FcntlInt(uintptr(got[0]), unix.F_GETFL, 0); err != nil || fl&^meaningless != flags {
			t.Errorf("flags %#o, want %#o (%v)", fl, flags, err)
		}
	}
}

func TestInotifyRefusals(t *testing.T) {
	fd := newInotify(t, 0)
	dir := t.TempDir()
	addInotify(t, fd, dir, unix.IN_CREATE)
	file(t, filepath.Join(dir, "f"), "")
	s := newStage(t)
	s.add(fd)
	refused(t, s.check(), "bytes of inotify events wait to be read")

	fd = newInotify(t, 0)
	gone := open(t, file(t, filepath.Join(dir, "gone"), ""), unix.O_RDONLY)
	must(t, unix.Fchmod(gone, 0o600))
	addInotify(t, fd, filepath.Join(dir, "gone"), unix.IN_OPEN)
	must(t, os.Remove(filepath.Join(dir, "gone")))
	s = newStage(t)
	s.add(fd)
	refused(t, s.check(), "inotify watch 1 is on inode", dir+"/gone", "was deleted", "inotify_rm_watch")

	fd = newInotify(t, 0)
	addInotify(t, fd, "/proc/self", unix.IN_MOVE_SELF) // others open it at any time
	s = newStage(t)
	s.add(fd)
	refused(t, s.check(), "inotify watch 1 is on inode", "path cannot be found")

	fd = newInotify(t, 0)
	s = newStage(t)
	f := s.add(fd)[0]
	f.Info.Other = []string{"inotify wd:100001 ino:2 sdev:1 mask:100 ignored_mask:0"}
	refused(t, s.check(), "is not mounted here")
	s = newStage(t)
	s.add(newInotify(t, 0))[0].Info.Other = []string{"inotify wd:1 ino:2 sdev:1 mask:0 ignored_mask:0"}
	refused(t, s.check(), "mask 0x0")
	s = newStage(t)
	f = s.add(newInotify(t, 0))[0]
	s.scene.watched = map[*Found][]inotifyWatch{f: {{WD: maxWD + 1}}}
	refused(t, s.check(), "numbered up to 1048577")
}

func TestInotifyChanged(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	dump := func() *stage {
		fd := newInotify(t, 0)
		addInotify(t, fd, file(t, a, ""), unix.IN_MODIFY)
		addInotify(t, fd, file(t, b, ""), unix.IN_MODIFY)
		s := newStage(t)
		s.add(fd)
		must(t, image.Refusals(s.check()))
		s.dump()
		return s
	}
	try := func(s *stage, words ...string) {
		t.Helper()
		_, err := s.open()
		if err == nil {
			t.Fatal("no error")
		}
		wantWords(t, err.Error(), words...)
	}
	s := dump()
	must(t, os.Remove(b))
	try(s, b, "is missing")
	must(t, os.Mkdir(b, 0o700))
	try(s, b, "a directory now")
	must(t, os.Remove(b))
	must(t, os.Link(a, b))
	try(s, "two watched paths lead to one file now")
	must(t, os.Remove(b))
	file(t, filepath.Join(dir, "c"), "") // so that the inode is another one
	s = dump()
	must(t, os.Rename(filepath.Join(dir, "c"), b))
	if _, err := s.open(); err != nil || len(s.warned) != 1 || !strings.Contains(s.warned[0], "was replaced") {
		t.Errorf("warnings %q, error %v", s.warned, err)
	}
	s.env.Policy = policy.Set{"files": "strict"}
	try(s, b, "was replaced", "files=changed")
}

func TestInotifyHostile(t *testing.T) {
	s := newStage(t)
	w := func(wd int32, mask uint32, path string) inotifyWatch {
		return inotifyWatch{WD: wd, Mask: mask, Path: []byte(path), identity: identity{Mode: unix.S_IFDIR}}
	}
	for _, ws := range [][]inotifyWatch{
		{w(0, 1, "/")}, {w(-1, 1, "/")}, {w(2, 1, "/"), w(1, 1, "/tmp")}, {w(1, 1, "/"), w(1, 1, "/tmp")}, {w(maxWD+1, 1, "/")},
		{w(1, 0, "/")}, {w(1, unix.IN_MASK_ADD|1, "/")}, {w(1, 1, "")}, {w(1, 1, "tmp")},
	} {
		rec := image.File{Kind: "inotify"}
		must(t, encodeRec(&rec, &inotifyRec{ws}))
		if fd, err := (inotify{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("%+v was accepted", ws)
		}
		if _, err := (inotify{}).CheckOpen(&rec, s.env); err == nil {
			t.Errorf("%+v was not noticed", ws)
		}
	}
}

func FuzzParseWatch(f *testing.F) {
	f.Add("inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d")
	f.Add("inotify wd:1 ino:2 sdev:1 mask:100 ignored_mask:0")
	f.Add("inotify wd:1 ino:2 sdev:1 mask:100 ignored_mask:0 fhandle-bytes:ff fhandle-type:1 f_handle:00")
	f.Fuzz(func(t *testing.T, line string) {
		w, err := parseWatch(line)
		if err == nil && (w.wd < 0 || len(w.handle) > 128) {
			t.Errorf("%q gives %+v", line, w)
		}
	})
}
