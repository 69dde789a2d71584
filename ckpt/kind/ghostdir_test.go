package kind

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sameGone fails the test unless two descriptors show the same deleted directory.
func sameGone(t *testing.T, what string, was, is int) {
	t.Helper()
	var a, b unix.Stat_t
	must(t, unix.Fstat(was, &a))
	must(t, unix.Fstat(is, &b))
	if b.Nlink != 0 || a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Atim != b.Atim {
		t.Errorf("%s: %+v became %+v", what, a, b)
	}
	la, err := os.Readlink("/proc/self/fd/" + itoa(was))
	must(t, err)
	lb, err := os.Readlink("/proc/self/fd/" + itoa(is))
	must(t, err)
	if la != lb {
		t.Errorf("%s: its link is %q, was %q", what, lb, la)
	}
	if f, err := unix.Openat(is, "new", unix.O_CREAT|unix.O_WRONLY, 0o600); err != unix.ENOENT {
		t.Errorf("%s: a file could be made in it: %d, %v", what, f, err)
	}
}

// Deleted directories come back inside each other, also where their parents are gone, together
// with the deleted files in them; and nothing is left of the names.
func TestDeletedDirectories(t *testing.T) {
	top := t.TempDir()
	outer, inner := filepath.Join(top, "d"), filepath.Join(top, "d", "sub")
	must(t, os.MkdirAll(filepath.Join(inner, "x", "y"), 0o750))
	must(t, os.Chown(inner, 1234, 1235))
	must(t, unix.Setxattr(inner, "user.k", []byte("v"), 0))
	lost := file(t, filepath.Join(inner, "x", "y", "lost"), "content")
	in := open(t, inner, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	twin := open(t, inner, unix.O_RDONLY)
	place := open(t, inner, unix.O_PATH|unix.O_DIRECTORY)
	out := open(t, outer, unix.O_RDONLY|unix.O_DIRECTORY)
	f := open(t, lost, unix.O_RDWR)
	must(t, os.RemoveAll(outer))
	fds := []int{in, twin, place, out, f}
	s, got := roundTrip(t, fds...)
	for i, what := range []string{"inner", "twin", "O_PATH", "outer"} {
		sameGone(t, what, fds[i], got[i])
	}
	var a, b, c, up unix.Stat_t
	must(t, unix.Fstat(got[0], &a))
	must(t, unix.Fstat(got[1], &b))
	must(t, unix.Fstat(got[2], &c))
	if a.Ino != b.Ino || a.Ino != c.Ino {
		t.Error("one deleted directory became several")
	}
	must(t, unix.Fstatat(got[0], "..", &up, 0))
	must(t, unix.Fstat(got[3], &b))
	if up.Ino != b.Ino {
		t.Error(".. leads elsewhere")
	}
	if b, err := userXAttrs(got[0]); err != nil || string(b["user.k"]) != "v" {
		t.Errorf("attributes %v, %v", b, err)
	}
	buf := make([]byte, 20)
	if n, err := unix.Pread(got[4], buf, 0); err != nil || string(buf[:n]) != "content" {
		t.Errorf("the file in it: %q, %v", buf[:n], err)
	}
	if link, err := os.Readlink("/proc/self/fd/" + itoa(got[4])); err != nil || link != lost+deletedMark {
		t.Errorf("the file in it is called %q, %v", link, err)
	}
	if left, err := os.ReadDir(top); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if len(s.warned) != 0 {
		t.Errorf("warned: %q", s.warned)
	}
}

// A name that somebody else has now stays his.
func TestDeletedDirectoryNameTaken(t *testing.T) {
	top := t.TempDir()
	dir, plain := filepath.Join(top, "dir"), filepath.Join(top, "plain")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Mkdir(plain, 0o700))
	inFile := open(t, file(t, filepath.Join(plain, "f"), "deep"), unix.O_RDONLY)
	fd := open(t, dir, unix.O_RDONLY)
	must(t, os.RemoveAll(dir))
	must(t, os.RemoveAll(plain))
	s := newStage(t)
	s.add(fd, inFile)
	s.env.Manifest.Files = s.dump()
	must(t, os.Mkdir(dir, 0o711))
	file(t, filepath.Join(dir, "his"), "")
	file(t, plain, "his") // what was a folder is a file now
	for i := range s.env.Manifest.Files {
		rec := &s.env.Manifest.Files[i]
		if _, err := ByName(rec.Kind).(Checker).CheckOpen(rec, s.env); err != nil {
			t.Errorf("%s: CheckOpen: %v", rec.Path, err)
		}
		got, err := ByName(rec.Kind).Open(rec, s.env)
		must(t, err)
		defer unix.Close(got)
		var st unix.Stat_t
		must(t, unix.Fstat(got, &st))
		if i == 1 && (st.Nlink != 0 || st.Size != 4) {
			t.Errorf("the file is %+v", st)
		}
	}
	must(t, s.closeShared())
	var names []string
	must(t, filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(path, top))
		return err
	}))
	if want := []string{"", "/dir", "/dir/his", "/plain"}; !slices.Equal(names, want) {
		t.Errorf("there is %q, want %q", names, want)
	}
}

// Where nothing can be made the restore says so beforehand.
func TestDeletedDirectoryPlace(t *testing.T) {
	top := t.TempDir()
	for d := top; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	dir := filepath.Join(top, "a", "b")
	must(t, os.MkdirAll(dir, 0o755))
	fd := open(t, dir, unix.O_RDONLY)
	f := open(t, file(t, filepath.Join(dir, "f"), "x"), unix.O_RDWR)
	must(t, os.RemoveAll(filepath.Join(top, "a")))
	s := newStage(t)
	s.add(fd, f)
	recs := s.dump()
	s.env.Manifest.Files = recs
	asNobody(t, func() {
		for i := range recs {
			_, err := ByName(recs[i].Kind).(Checker).CheckOpen(&recs[i], s.env)
			if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "cannot be made again in "+top) {
				t.Errorf("CheckOpen: %v", err)
			}
			if _, err := ByName(recs[i].Kind).Open(&recs[i], s.env); !errors.Is(err, os.ErrPermission) {
				t.Errorf("Open: %v", err)
			}
		}
	})
}
