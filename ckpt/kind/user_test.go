package kind

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asNobody runs f on a thread with the filesystem credentials of uid and gid 1234, as a restore
// opens the files of such a user.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, nr := range []uintptr{unix.SYS_SETFSGID, unix.SYS_SETFSUID} {
			unix.RawSyscall(nr, 1234, 0, 0)
		}
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&hdr, &data[0])
		data[0].Effective, data[1].Effective = 0, 0
		err = errors.Join(err, unix.Capset(&hdr, &data[0]))
		if err == nil {
			f()
		}
		done <- err
	}()
	must(t, <-done)
}

// TestOpenAsUser opens files without any privilege.
func TestOpenAsUser(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	must(t, os.Mkdir(filepath.Join(dir, "own"), 0o700))
	must(t, os.Chown(filepath.Join(dir, "own"), 1234, 1234))
	deleted := filepath.Join(dir, "own", "deleted")
	file(t, deleted, "carried")
	must(t, os.Chown(deleted, 1234, 1234))
	must(t, os.Chmod(deleted, 0o400))
	a, b := open(t, deleted, unix.O_RDWR), open(t, deleted, unix.O_RDONLY)
	must(t, os.Remove(deleted))
	r, w := newPipe(t, 0, 65536, []byte("x")) // it belongs to root, as a pipe of a shell that ran su
	rw := open(t, "/proc/self/fd/"+itoa(r), unix.O_RDWR)
	own, own2 := newPipe(t, 0, 65536, nil)
	must(t, unix.Fchown(own, 1234, 1234))
	ev := newEventFD(t, 3)

	s := newStage(t)
	fds := []int{a, b, r, w, rw, own, own2, ev, newEpoll(t), open(t, "/dev/null", unix.O_RDWR)}
	s.add(fds...)
	if all := s.check(); len(all) != 0 {
		t.Fatal(all)
	}
	s.dump()
	var got []int
	asNobody(t, func() {
		for i := range s.env.Manifest.Files {
			rec := &s.env.Manifest.Files[i]
			fd, err := ByName(rec.Kind).Open(rec, s.env)
			if err != nil {
				t.Errorf("%s: %v", rec.Path, err)
				return
			}
			got = append(got, fd)
		}
	})
	if t.Failed() {
		return
	}
	must(t, s.closeShared())
	for i, fd := range got {
		defer unix.Close(fd)
		for _, d := range differences(t, fds[i], fd) {
			t.Errorf("%s: %s", s.scene.Files[i].Link, d)
		}
	}
	if len(s.warned) != 0 {
		t.Errorf("warned: %s", strings.Join(s.warned, "\n"))
	}
}

// TestOpenAsUserDenied: what the user may not open is an error that says so.
func TestOpenAsUserDenied(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	path := file(t, filepath.Join(dir, "secret"), "x")
	must(t, os.Chmod(path, 0o600))
	s := newStage(t)
	s.add(open(t, path, unix.O_RDONLY))
	rec := s.dump()[0]
	asNobody(t, func() {
		if _, err := (regular{}).CheckOpen(&rec, s.env); !errors.Is(err, os.ErrPermission) {
			t.Errorf("CheckOpen: %v", err)
		}
		if _, err := (regular{}).Open(&rec, s.env); !errors.Is(err, os.ErrPermission) {
			t.Errorf("Open: %v", err)
		}
	})
}
