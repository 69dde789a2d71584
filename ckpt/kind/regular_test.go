package kind

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

func TestRegular(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", "two\nlines", "gone (deleted)", "\xff not utf8"} {
		path := file(t, filepath.Join(dir, name), "0123456789")
		for _, flags := range []int{
			unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_APPEND, unix.O_RDONLY | unix.O_NONBLOCK,
			unix.O_WRONLY | unix.O_DSYNC, unix.O_WRONLY | unix.O_SYNC, unix.O_RDONLY | unix.O_NOATIME,
			unix.O_RDONLY | unix.O_NOFOLLOW, unix.O_RDWR | unix.O_CREAT | unix.O_NOCTTY, unix.O_RDWR | unix.O_ASYNC,
		} {
			t.Run(fmt.Sprintf("%q/%#o", name, flags), func(t *testing.T) {
				fd := open(t, path, flags)
				_, err := unix.Seek(fd, 4, unix.SEEK_SET)
				must(t, err)
				s, got := roundTrip(t, fd)
				if p := s.env.Manifest.Files[0].Path; p != path {
					t.Errorf("path %q", p)
				}
				var a, b unix.Stat_t
				must(t, unix.Fstat(fd, &a))
				must(t, unix.Fstat(got[0], &b))
				if a.Ino != b.Ino || a.Dev != b.Dev {
					t.Errorf("inode %d, was %d", b.Ino, a.Ino)
				}
				if len(s.warned) != 0 {
					t.Errorf("warned: %q", s.warned)
				}
			})
		}
	}
}

// TestRegularPos: an offset behind the end is lawful and stays.
func TestRegularPos(t *testing.T) {
	fd := open(t, file(t, filepath.Join(t.TempDir(), "f"), "12345"), unix.O_RDWR)
	_, err := unix.Seek(fd, 1<<40, unix.SEEK_SET)
	must(t, err)
	roundTrip(t, fd)
}

// TestRegularDirect: O_DIRECT, on a filesystem that knows it.
func TestRegularDirect(t *testing.T) {
	path := file(t, filepath.Join(t.TempDir(), "f"), "12345")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == unix.EINVAL {
		t.Log("no O_DIRECT on the filesystem of the temporary folder")
		return
	}
	must(t, err)
	defer unix.Close(fd)
	roundTrip(t, fd)
}

// changeTest is what happens to a file between checkpoint and restore.
var changeTests = []struct {
	name   string
	change func(t *testing.T, path string)
	warn   string // with the default policy
	err    string // always
}{
	{"unchanged", func(*testing.T, string) {}, "", ""},
	{"missing", func(t *testing.T, p string) { must(t, os.Remove(p)) }, "", "is missing; put it back"},
	{"directory", func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, os.Mkdir(p, 0o700)) }, "", "is a directory now, but was a regular file"},
	{"fifo", func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, unix.Mkfifo(p, 0o600)) }, "", "is a fifo now"},
	{"shorter", func(t *testing.T, p string) { must(t, os.Truncate(p, 3)) }, "", "has 3 bytes now, but it was being read or written at offset 4"},
	{"shrunk", func(t *testing.T, p string) { must(t, os.Truncate(p, 5)) }, "has shrunk from 10 to 5 bytes", ""},
	{"grown", func(t *testing.T, p string) { must(t, os.Truncate(p, 50)) }, "has grown from 10 to 50 bytes", ""},
	{"touched", func(t *testing.T, p string) { must(t, os.Chtimes(p, time.Time{}, time.Unix(1e9, 0))) }, "was written to at 2001-09-09", ""},
	{"replaced", func(t *testing.T, p string) { must(t, os.Rename(file(t, p+".new", "0123456789"), p)) }, "was replaced", ""},
}

func TestRegularChanged(t *testing.T) {
	for _, c := range changeTests {
		for _, strict := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/strict=%v", c.name, strict), func(t *testing.T) {
				path := file(t, filepath.Join(t.TempDir(), "f"), "0123456789")
				fd := open(t, path, unix.O_RDWR)
				_, err := unix.Seek(fd, 4, unix.SEEK_SET)
				must(t, err)
				s := newStage(t)
				s.env.Policy = policy.Set{"files": map[bool]string{true: "strict", false: "changed"}[strict]}
				s.add(fd)
				recs := s.dump()
				c.change(t, path)
				wantErr := c.err
				if strict && c.warn != "" {
					wantErr = c.warn
				}
				warn, err := regular{}.CheckOpen(&recs[0], s.env)
				sameVerdict(t, "CheckOpen", warn, err, c.warn, wantErr)
				if warn, _ := (regular{}).CheckOpen(&recs[0], s.env); warn != "" {
					t.Errorf("said twice: %s", warn)
				}
				clear(s.env.Shared) // as if CheckOpen had seen nothing
				got, err := regular{}.Open(&recs[0], s.env)
				if err == nil {
					defer unix.Close(got)
				}
				sameVerdict(t, "Open", strings.Join(s.warned, "\n"), err, c.warn, wantErr)
			})
		}
	}
}

func sameVerdict(t *testing.T, what, warn string, err error, wantWarn, wantErr string) {
	t.Helper()
	switch {
	case wantErr != "":
		if err == nil {
			t.Fatalf("%s: no error, want %q", what, wantErr)
		}
		wantWords(t, err.Error(), wantErr)
	case err != nil:
		t.Fatalf("%s: %v", what, err)
	case (warn == "") != (wantWarn == "") || !strings.Contains(warn, wantWarn):
		t.Fatalf("%s: warning %q, want %q", what, warn, wantWarn)
	}
}

func TestRegularOtherName(t *testing.T) {
	dir := t.TempDir()
	path := file(t, filepath.Join(dir, "f"), "x")
	must(t, os.Link(path, filepath.Join(dir, "g")))
	fd := open(t, path, unix.O_RDONLY)
	must(t, os.Remove(path))
	same := func(got []int) {
		t.Helper()
		var a, b unix.Stat_t
		must(t, unix.Fstat(fd, &a))
		must(t, unix.Fstat(got[0], &b))
		if a.Ino != b.Ino || a.Dev != b.Dev {
			t.Errorf("it came out as inode %d, and was %d", b.Ino, a.Ino)
		}
	}
	_, got := roundTrip(t, fd)
	same(got)
	file(t, path, "another file under the old name")
	_, got = roundTrip(t, fd)
	same(got)

	s := newStage(t)
	f := s.add(fd)[0]
	f.Stat.Dev++ // as on a filesystem without handles
	f.at = nil
	refused(t, s.check(), "its name "+path+" was deleted", "1 other name")

	short, err := unix.Open(file(t, filepath.Join(dir, "short"), ""), unix.O_RDONLY, 0)
	must(t, err)
	g := &Found{FD: short}
	must(t, unix.Fstat(short, &g.Stat))
	h := g.handle()
	must(t, unix.Close(short))
	must(t, os.Remove(filepath.Join(dir, "short")))
	if _, _, err := h.openHandle("/x/short", unix.O_RDONLY); err == nil || !strings.Contains(err.Error(), "/x/short") || !strings.Contains(err.Error(), "the file is gone") {
		t.Errorf("a file that is gone: %v", err)
	}
	if _, err := (&fileHandle{Dev: h.Dev, Bytes: make([]byte, 1000)}).open(unix.O_RDONLY); err == nil {
		t.Error("a handle of 1000 bytes leads to a file")
	}
}

func TestRegularMoved(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, file(t, filepath.Join(dir, "f"), "x"), unix.O_RDONLY)
	must(t, os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")))
	s := newStage(t)
	s.add(fd)
	if recs := s.dump(); recs[0].Path != filepath.Join(dir, "g") {
		t.Errorf("path %q", recs[0].Path)
	}
	// As it is when something is mounted over the path.
	s.scene.Files[0].Link = file(t, filepath.Join(dir, "h"), "y")
	must(t, image.Refusals(s.check())) // the file itself is found
	s.scene.Files[0].Stat.Dev++
	refused(t, s.check(), "its path leads to another file now")
}

// TestRegularRoot: a tree with a root directory of its own, seen through /proc/PID/root or from ours.
func TestRegularRoot(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o700))
	fd := open(t, file(t, filepath.Join(root, "etc/f"), "x"), unix.O_RDONLY)
	link := filepath.Join(t.TempDir(), "root")
	must(t, os.Symlink(root, link))
	s := newStage(t)
	s.scene.Root = link
	s.add(fd)
	if recs := s.dump(); recs[0].Path != "/etc/f" {
		t.Errorf("path %q, want that in the tree's root", recs[0].Path)
	}
	s.scene.Root = "/proc/self/root"
	if path, where := locate(s.scene.Files[0], s.scene); where != atPath || path != filepath.Join(root, "etc/f") {
		t.Errorf("path %q place %d", path, where)
	}
}

func TestRegularSpecial(t *testing.T) {
	for path, words := range map[string]string{
		"/proc/1/status": "it is about pid 1",
		"/proc/kmsg":     "what the kernel holds at that moment",
	} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Logf("%s cannot be opened here: %v", path, err)
			continue
		}
		defer unix.Close(fd)
		s := newStage(t)
		s.add(fd)
		refused(t, s.check(), words)
	}
	fd := open(t, "/proc/meminfo", unix.O_RDONLY)
	_, err := unix.Read(fd, make([]byte, 100))
	must(t, err)
	s, _ := roundTrip(t, fd) // its size is 0, its offset is not
	if len(s.warned) != 0 {
		t.Errorf("warned: %q", s.warned)
	}
	roundTrip(t, open(t, "/sys/kernel/mm/transparent_hugepage/enabled", unix.O_RDONLY))
}

// TestOwnMount reads a mountinfo; a question to the mount itself would never be answered.
func TestOwnMount(t *testing.T) {
	info := []byte("27 1 0:25 / / rw - ext4 /dev/root rw\n" +
		"61 27 0:50 / /mnt/ckpt rw,nosuid shared:9 - fuse.ckptfs ckptfs rw\n62 27 0:51 / /mnt/ssh rw - fuse.sshfs host: rw\n")
	if !isOwn(info, 61) || isOwn(info, 62) || isOwn(info, 99) || isOwn([]byte("damaged"), 61) {
		t.Error("wrong")
	}
}

// TestSpecialFilesystems opens a directory of each that is mounted here.
func TestSpecialFilesystems(t *testing.T) {
	for path, words := range map[string]string{
		"/sys/kernel/debug": "debugfs and tracefs", "/sys/kernel/tracing": "debugfs and tracefs",
		"/sys/kernel/security": "security module", "/sys/fs/bpf": "bpffs", "/sys/kernel/config": "configfs", "/dev/mqueue": "message queues",
	} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue // this kernel has none
		}
		must(t, err)
		defer unix.Close(fd)
		s := newStage(t)
		f := s.add(fd)[0]
		if fs := fsType(f); fs == unix.SYSFS_MAGIC || fs == unix.TMPFS_MAGIC {
			continue // only the mount point is here
		}
		refused(t, s.check(), words)
	}
}

func TestRegularHint(t *testing.T) {
	path := file(t, filepath.Join(t.TempDir(), "deleted"), "x")
	ghost := open(t, path, unix.O_RDWR)
	must(t, os.Remove(path))
	setWriteHint(ghost, 2, path, newStage(t).env)
	_, ghosts := roundTrip(t, ghost)
	if h := writeHint(ghosts[0]); h != 2 {
		t.Errorf("hint %d of a deleted file", h)
	}
	fd := open(t, file(t, filepath.Join(t.TempDir(), "f"), "x"), unix.O_RDWR)
	if writeHint(fd) != 0 {
		t.Fatal("a new file has a hint")
	}
	s := newStage(t)
	setWriteHint(fd, 3, "f", s.env)
	if len(s.warned) != 0 {
		t.Fatalf("warned: %q", s.warned)
	}
	got := s.trip(fd)
	if h := writeHint(got[0]); h != 3 {
		t.Errorf("hint %d", h)
	}
}
