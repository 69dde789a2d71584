package kind

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	for i := range 500 {
		file(t, filepath.Join(dir, "entry-with-a-long-name-"+itoa(i)), "")
	}
	fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	_, err := unix.Getdents(fd, make([]byte, 2048))
	must(t, err)
	_, got := roundTrip(t, fd)
	a, b := make([]byte, 4096), make([]byte, 4096)
	n, err := unix.Getdents(fd, a)
	must(t, err)
	m, err := unix.Getdents(got[0], b)
	must(t, err)
	if n == 0 || string(a[:n]) != string(b[:m]) {
		t.Error("reading on gives other entries")
	}
}

func TestDirectoryChanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o700))
	s := newStage(t)
	s.add(open(t, dir, unix.O_RDONLY))
	recs := s.dump()
	must(t, os.Remove(dir))
	_, err := directory{}.CheckOpen(&recs[0], s.env)
	sameVerdict(t, "CheckOpen", "", err, "", "is missing")
	file(t, dir, "")
	_, err = directory{}.Open(&recs[0], s.env)
	sameVerdict(t, "Open", "", err, "", "is a regular file now, but was a directory")
	must(t, os.Remove(dir))
	must(t, os.Mkdir(dir+"x", 0o700)) // so that the inode number is another one
	must(t, os.Mkdir(dir, 0o700))
	recs[0].Pos = 1
	var now unix.Stat_t
	must(t, unix.Stat(dir, &now))
	warn, err := directory{}.judge(&recs[0], &identity{Dev: now.Dev, Ino: now.Ino}, &now, lenient)
	sameVerdict(t, "judge", warn, err, "was being read at position 1", "")
	_, err = directory{}.judge(&recs[0], &identity{Dev: now.Dev, Ino: now.Ino}, &now, strictly)
	sameVerdict(t, "judge", "", err, "", "restore it with --policy files=changed")
	warn, err = directory{}.judge(&recs[0], &identity{Dev: now.Dev, Ino: now.Ino + 1, MTime: now.Mtim.Nano()}, &now, lenient)
	sameVerdict(t, "judge", warn, err, "was replaced", "")
}

func TestDirectoryRefusals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o700))
	fd := open(t, dir, unix.O_RDONLY)
	must(t, os.Remove(dir))
	if err := unix.Fsetxattr(fd, "trusted.key", []byte("value"), 0); err == nil { // not every filesystem has them
		s := newStage(t)
		s.add(fd)
		refused(t, s.check(), "deleted while open", "trusted.key cannot be carried")
	}
}

func TestPathOnly(t *testing.T) {
	dir := t.TempDir()
	path := file(t, filepath.Join(dir, "f"), "x")
	link := filepath.Join(dir, "link")
	must(t, os.Symlink("nowhere", link))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	fds := []int{
		open(t, path, unix.O_PATH), open(t, link, unix.O_PATH|unix.O_NOFOLLOW), open(t, dir, unix.O_PATH|unix.O_DIRECTORY),
		open(t, filepath.Join(dir, "fifo"), unix.O_PATH), open(t, "/dev/null", unix.O_PATH),
	}
	s, got := roundTrip(t, fds...)
	for i := range fds {
		var a, b unix.Stat_t
		must(t, unix.Fstat(fds[i], &a))
		must(t, unix.Fstat(got[i], &b))
		if a.Ino != b.Ino {
			t.Errorf("%s is another inode", s.scene.Files[i].Link)
		}
	}
	recs := s.env.Manifest.Files
	must(t, os.Rename(file(t, path+"2", "y"), path))
	warn, err := pathOnly{}.CheckOpen(&recs[0], s.env)
	sameVerdict(t, "CheckOpen", warn, err, "was replaced", "")
	must(t, os.Remove(link))
	_, err = pathOnly{}.CheckOpen(&recs[1], s.env)
	sameVerdict(t, "CheckOpen", "", err, "", "is missing")
}

func TestPathOnlyRefusals(t *testing.T) {
	path := file(t, filepath.Join(t.TempDir(), "f"), "x")
	s := newStage(t)
	s.add(open(t, path, unix.O_PATH))
	must(t, os.Remove(path))
	must(t, unix.Fstat(s.scene.Files[0].FD, &s.scene.Files[0].Stat))
	s.scene.Files[0].Link += deletedMark
	refused(t, s.check(), "the file opened with O_PATH was deleted while open")

	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	s = newStage(t)
	s.add(open(t, "/proc/self/fd/"+itoa(p[0]), unix.O_PATH))
	refused(t, s.check(), "it was opened with O_PATH and has no path")
}

func TestCharDev(t *testing.T) {
	var fds []int
	for _, path := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"} {
		fds = append(fds, open(t, path, unix.O_RDONLY), open(t, path, unix.O_RDWR|unix.O_NONBLOCK))
	}
	_, got := roundTrip(t, fds...)
	if _, err := unix.Write(got[5], []byte("x")); err != unix.ENOSPC {
		t.Errorf("writing to /dev/full: %v", err)
	}
}

func TestCharDevChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "null")
	must(t, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	s := newStage(t)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.EACCES {
		t.Log("the temporary folder is mounted nodev")
		return
	}
	must(t, err)
	defer unix.Close(fd)
	s.add(fd)
	recs := s.dump()
	must(t, os.Remove(path))
	must(t, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	_, err = charDev{}.CheckOpen(&recs[0], s.env)
	sameVerdict(t, "CheckOpen", "", err, "", "is device 1:5 now, but was 1:3")
	_, err = charDev{}.Open(&recs[0], s.env)
	sameVerdict(t, "Open", "", err, "", "is device 1:5 now, but was 1:3")
}

func TestUnsupported(t *testing.T) {
	netlink, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	must(t, err)
	defer unix.Close(netlink)
	for _, c := range []struct {
		fd    int
		words []string
	}{
		{netlink, []string{"netlink raw socket", "sockets are not kept", "close the connection"}},
		{open(t, "/proc/self/ns/net", unix.O_RDONLY), []string{"net:[", "stands for a namespace"}},
		{open(t, "/dev/fuse", unix.O_RDWR), []string{"character device 10:229 /dev/fuse", "only its driver knows"}},
	} {
		s := newStage(t)
		s.add(c.fd)
		all := s.check()
		refused(t, all, append(c.words, "pid "+itoa(os.Getpid()), "fd "+itoa(c.fd))...)
		if image.Refusals(all) == nil {
			t.Error("not a refusal")
		}
	}
	for name, word := range map[string]string{
		"userfaultfd": "userfaultfd", "perf_event": "performance counters",
		"seccomp notify": "seccomp listener", "kvm-vm": "virtual machines", "bpf-map": "BPF programs", "bpf_link": "BPF programs", "btf": "BPF programs", "landlock-ruleset": "landlock", "something new": "of this kind",
	} {
		what, remedy := anonymous(name)
		wantWords(t, what, word)
		if remedy == "" {
			t.Errorf("%s: no remedy", name)
		}
	}
}
