package kind

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// CheckOpen is Checker.CheckOpen: whether the names are free.
func (unixSock) CheckOpen(rec *image.File, e *Env) (string, error) {
	w, err := shared(e, "unix sockets to be", func() (*unixWorld, error) { return readUnixWorld(e) })
	if err != nil {
		return "", err
	}
	var r unixRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	n := w.nodes[r.Ino]
	switch {
	case n == nil || len(n.Name) == 0 || n.Accepted:
	case !isPath(n.Name):
		err = abstractTaken(n.Name)
	case !n.away():
		err = checkSocketPlace(string(n.File.Path))
	}
	var taken *nameTakenError
	if errors.As(err, &taken) && holds(e.Manifest, taken.pid) {
		return "", nil // the very process, which has to end first: that is asked for next
	}
	return "", err
}

// clearPlace takes a socket file away that nobody has bound any more.
func clearPlace(at string) error {
	if err := checkSocketPlace(at); err != nil {
		return err
	}
	if err := unix.Unlink(at); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove the old socket file %s: %w", at, err)
	}
	return nil
}

// checkSocketPlace fails if a path is something else than a socket file that nobody has bound.
func checkSocketPlace(at string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(at, &st); {
	case err == unix.ENOENT:
		if err := unix.Stat(path.Dir(at), &st); err != nil {
			return fmt.Errorf("the folder of the unix socket %s: %w; make it again", at, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("unix socket %s: %w", at, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("unix socket %s: there is %s now; move it away and restore again", at, typeName(st.Mode))
	}
	live, err := bound(at)
	if err != nil {
		return fmt.Errorf("unix socket %s: %w", at, err)
	}
	if live {
		pid := holderOf(func(u *unixInfo) bool { return u.File == st.Ino&0xffffffff && u.FileDev == st.Dev })
		return &nameTakenError{at, pid}
	}
	return nil
}

// bound reports whether a socket has the file. A socket of another type than the one asked with
// does not notice the question.
func bound(at string) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	file, err := unix.Open(at, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(file)
	switch err := addressed(unix.SYS_CONNECT, fd, sockaddr([]byte("/proc/self/fd/"+strconv.Itoa(file)))); err {
	case nil, unix.EPROTOTYPE, unix.EPERM:
		return true, nil
	case unix.ECONNREFUSED:
		return false, nil
	default:
		return false, fmt.Errorf("find out whether anybody listens: %w", err)
	}
}

// nameTakenError says that somebody else has a name.
type nameTakenError struct {
	name string
	pid  int // 0: nobody that can be seen
}

func (e *nameTakenError) Error() string {
	who := "a process that cannot be seen"
	if e.pid != 0 {
		who = processName(e.pid)
	}
	return fmt.Sprintf("the name %s of the unix socket is in use by %s; end that and restore again", e.name, who)
}

// holderOf returns the pid of a process that has a unix socket like that, or 0.
func holderOf(like func(u *unixInfo) bool) int {
	all, err := unixSockets()
	if err != nil {
		return 0
	}
	links := map[string]bool{}
	for ino, u := range all {
		if like(u) {
			links[fmt.Sprintf("socket:[%d]", ino)] = true
		}
	}
	return holderOfLink(links)
}

// holderOfLink returns the pid of a process that has a descriptor with such a link, or 0.
func holderOfLink(links map[string]bool) (pid int) {
	if len(links) == 0 {
		return 0
	}
	eachLink(func(p int, link string) bool {
		if links[link] {
			pid = p
		}
		return pid == 0
	})
	return pid
}

// eachLink gives see the link of every descriptor of every process, until that is false.
func eachLink(see func(pid int, link string) bool) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := "/proc/" + p.Name() + "/fd/"
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if link, err := os.Readlink(dir + fd.Name()); err == nil && !see(pid, link) {
				return
			}
		}
	}
}

// abstractTaken fails if somebody has the abstract name.
func abstractTaken(name []byte) error {
	all, err := unixSockets()
	if err != nil {
		return err
	}
	same := func(u *unixInfo) bool { return bytes.Equal(u.Name, name) }
	for _, u := range all {
		if same(u) {
			return &nameTakenError{showName(name), holderOf(same)}
		}
	}
	return nil
}
