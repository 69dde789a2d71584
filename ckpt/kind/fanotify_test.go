package kind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func newFanotify(t *testing.T, flags uint) int {
	t.Helper()
	fd, err := unix.FanotifyInit(flags|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestFanotify(t *testing.T) {
	dir := t.TempDir()
	path := file(t, filepath.Join(dir, "f odd"), "x")
	roundTrip(t, newFanotify(t, 0))
	fd := newFanotify(t, unix.FAN_REPORT_DFID_NAME|unix.FAN_REPORT_PIDFD)
	must(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_CREATE|unix.FAN_ONDIR, unix.AT_FDCWD, dir))
	must(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_MODIFY, unix.AT_FDCWD, path))
	must(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_IGNORE_SURV, unix.FAN_ATTRIB, unix.AT_FDCWD, path))
	_, got := roundTrip(t, fd)
	must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	if n, err := unix.IoctlGetInt(got[0], unix.TIOCINQ); err != nil || n == 0 {
		t.Errorf("the restored one tells nothing (%v)", err)
	}
	before := openFiles(t)
	must(t, drainFanotify(got[0])) // an event comes with a pidfd, which is closed again
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open, %d are", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

func TestFanotifyRefusals(t *testing.T) {
	dir := t.TempDir()
	fd := newFanotify(t, 0)
	must(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, dir))
	must(t, os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600))
	s := newStage(t)
	f := s.add(fd)[0]
	refused(t, s.check(), "bytes of fanotify events wait to be read", "try again")
	must(t, drainFanotify(fd))
	must(t, image.Refusals(s.check()))
	f.Info.Other = []string{"fanotify flags:0 event-flags:8000", "fanotify mnt_ns:11 mflags:0 mask:1000000 ignored_mask:0"}
	refused(t, s.check(), "no good sdev")
	f.Info.Other = []string{"fanotify flags:0 event-flags:8000", "fanotify mnt_id:7fffffff mflags:0 mask:20 ignored_mask:0"}
	refused(t, s.check(), "cannot be seen from here")
	f.Info.Other = nil
	refused(t, s.check(), "does not tell how it was made")
	must(t, os.Mkdir(filepath.Join(dir, "gone"), 0o700))
	gone := newFanotify(t, 0)
	must(t, unix.FanotifyMark(gone, unix.FAN_MARK_ADD, unix.FAN_OPEN|unix.FAN_ONDIR, unix.AT_FDCWD, filepath.Join(dir, "gone")))
	s = newStage(t)
	s.add(gone)
	s.dump()
	must(t, os.Remove(filepath.Join(dir, "gone")))
	if _, err := s.open(); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a marked file that is missing: %v", err)
	}
}

// TestFanotifyHostile refuses records that no checkpoint has written.
func TestFanotifyHostile(t *testing.T) {
	mark := func(m fanotifyMark) *fanotifyRec { return &fanotifyRec{Marks: []fanotifyMark{m}} }
	for what, r := range map[string]*fanotifyRec{
		"flags":         {Flags: 1 << 20},
		"no path":       mark(fanotifyMark{Mask: 1}),
		"relative":      mark(fanotifyMark{Mask: 1, Path: []byte("etc")}),
		"permission":    mark(fanotifyMark{Mask: unix.FAN_OPEN_PERM, Path: []byte("/etc")}),
		"nothing":       mark(fanotifyMark{Path: []byte("/etc")}),
		"unknown mask":  mark(fanotifyMark{Mask: 1 << 31, Path: []byte("/etc")}),
		"unknown place": mark(fanotifyMark{Mask: 1, On: 0x20, Path: []byte("/etc")}),
		"no mount":      mark(fanotifyMark{Mask: 1, On: unix.FAN_MARK_MOUNT, Path: []byte(t.TempDir()), identity: identity{Mode: unix.S_IFDIR}}),
		"another type":  mark(fanotifyMark{Mask: 1, Path: []byte("/etc"), identity: identity{Mode: unix.S_IFREG}}),
	} {
		s := newStage(t)
		rec := image.File{Kind: "fanotify"}
		must(t, encodeRec(&rec, r))
		if _, err := (fanotify{}).CheckOpen(&rec, s.env); err == nil {
			t.Errorf("%s: nobody minds", what)
		}
		if fd, err := (fanotify{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("%s: it is made", what)
		}
	}
}

func FuzzFanotify(f *testing.F) {
	f.Add("fanotify flags:12 event-flags:8000\nfanotify ino:98a1d1 sdev:fe00000 mflags:40 mask:0 ignored_mask:2 fhandle-bytes:8 fhandle-type:1 f_handle:d1a19800618bf53a")
	f.Add("fanotify flags:0 event-flags:0\nfanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\nfanotify mnt_id:1b mflags:0 mask:20 ignored_mask:0")
	f.Fuzz(func(t *testing.T, text string) {
		r, raw, err := parseFanotify(strings.Split(text, "\n"))
		if err == nil && (len(r.Marks) != len(raw) || r.valid() != nil) {
			t.Errorf("%+v from %q", r, text)
		}
		closeEvents([]byte(text)[:min(len(text), 23)]) // too short for an event: no descriptor of ours is closed
	})
}
