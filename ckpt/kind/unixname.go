package kind

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of unix sockets. One that begins with NUL is abstract. Any other is that of a file, by
// which the socket is found as long as it is there, and the very text of bind(2), which
// getsockname(2) tells: relative, if it was.

// unixFile is the file of a name.
type unixFile struct {
	identity
	UID  uint32 `cbor:"8,keyasint,omitempty"`
	GID  uint32 `cbor:"9,keyasint,omitempty"`
	Path []byte `cbor:"10,keyasint"`           // where it is, which may be another place than the name tells
	Gone bool   `cbor:"11,keyasint,omitempty"` // it was deleted
}

const siocUnixFile = 0x89e0 // SIOCUNIXFILE of linux/un.h

// unixPathMax is the size of sun_path. The kernel tells a name of that length with a NUL more.
const unixPathMax = 108

// isPath reports whether a name is that of a file.
func isPath(name []byte) bool { return len(name) > 0 && name[0] != 0 }

// pathName is the path of such a name.
func pathName(name []byte) string {
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name)
}

// showName is a name as ss(8) shows it.
func showName(name []byte) string {
	if isPath(name) {
		return pathName(name)
	}
	return "@" + strings.ReplaceAll(strings.TrimPrefix(string(name), "\x00"), "\x00", "@")
}

// nameOf describes the name of the socket f, and its file if it has one.
func (s *Scene) nameOf(f *Found) (name []byte, file *unixFile, err error) {
	if name, err = f.unixName(); err != nil || !isPath(name) {
		return name, nil, err
	}
	fd, err := fileOfSocket(f.FD)
	if err != nil {
		return name, nil, err
	}
	defer unix.Close(fd)
	g := &Found{FD: fd, Flags: unix.O_PATH}
	if g.Link, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
		return name, nil, err
	}
	if err := unix.Fstat(fd, &g.Stat); err != nil {
		return name, nil, fmt.Errorf("fstat of its file: %w", err)
	}
	at, where := locate(g, s)
	if where == hidden {
		return name, nil, fmt.Errorf("its file %s is not where its name leads: it has another name, or something is mounted over it", at)
	}
	return name, &unixFile{identify(&g.Stat), g.Stat.Uid, g.Stat.Gid, []byte(at), where == deleted}, nil
}

// fileOfSocket opens the file that a socket is bound to, with O_PATH, deleted or not.
func fileOfSocket(fd int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), siocUnixFile, 0)
	if errno != 0 {
		return -1, fmt.Errorf("open the file of its name (SIOCUNIXFILE): %w", errno)
	}
	return int(n), nil
}

// sockaddr is a struct sockaddr_un.
func sockaddr(name []byte) []byte {
	if isPath(name) && len(pathName(name)) == unixPathMax {
		name = name[:unixPathMax]
	}
	return append([]byte{unix.AF_UNIX, 0}, name...)
}

// addressed calls bind(2) or connect(2).
func addressed(nr uintptr, fd int, addr []byte) error {
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&addr[0])), uintptr(len(addr)))
	if errno != 0 {
		return errno
	}
	return nil
}

// connectTo connects a socket of ours to another one of ours, wherever its name leads.
func connectTo(fd, to int, name []byte) error {
	if !isPath(name) {
		return addressed(unix.SYS_CONNECT, fd, sockaddr(name))
	}
	file, err := fileOfSocket(to)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	return addressed(unix.SYS_CONNECT, fd, sockaddr([]byte("/proc/self/fd/"+strconv.Itoa(file))))
}

// stage is a folder of ours in which sockets get names that stand for other places. Who knows the
// path can reach what is in it.
type unixStage struct{ dir string }

func newUnixStage(parent string) (*unixStage, error) {
	dir, err := os.MkdirTemp(parent, ".ckptfs-")
	if err != nil {
		return nil, fmt.Errorf("folder to name a unix socket in: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		_ = os.Remove(dir) // never used
		return nil, err
	}
	return &unixStage{dir}, nil
}

// bind gives a socket a name, as if the folder was the root directory, and returns the path of
// its file: short, and right below the folder.
func (g *unixStage) bind(fd int, name []byte) (string, error) {
	const most = 54 // components of two bytes that fit into a name
	text := pathName(name)
	var at []string // where the name leads, from the root of the folder
	cwd := ""
	if text[0] != '/' {
		at = strings.Split(strings.Repeat("d/", most)+"d", "/")
		cwd = strings.Join(at, "/")
	}
	if err := os.MkdirAll(g.dir+"/"+cwd, 0o711); err != nil {
		return "", err
	}
	parts := strings.Split(text, "/")
	for _, c := range parts[:len(parts)-1] {
		switch c {
		case "", ".":
			continue
		case "..":
			at = at[:max(0, len(at)-1)]
			continue
		}
		at = append(at, c)
		if err := os.MkdirAll(g.dir+"/"+strings.Join(at, "/"), 0o711); err != nil {
			return "", err
		}
	}
	err := apartFS(g.dir, "/"+cwd, func() error {
		unix.Umask(0)
		return addressed(unix.SYS_BIND, fd, sockaddr(name))
	})
	if err != nil {
		return "", fmt.Errorf("bind to %s: %w", showName(name), err)
	}
	short := g.dir + "/s"
	if now := path.Join(append(append([]string{g.dir}, at...), parts[len(parts)-1])...); now != short {
		if err := os.Rename(now, short); err != nil {
			return "", err
		}
	}
	return short, nil
}

func (g *unixStage) close() error { return os.RemoveAll(g.dir) }

// bindAway gives a socket a name that leads nowhere afterwards.
func bindAway(fd int, name []byte) error {
	if !isPath(name) {
		return addressed(unix.SYS_BIND, fd, sockaddr(name))
	}
	g, err := newUnixStage("")
	if err != nil {
		return err
	}
	_, err = g.bind(fd, name)
	return errors.Join(err, g.close())
}

// bindFile binds a socket to its file, in the place of one that nobody has bound.
func (w *unixWorld) bindFile(n *unixNode) error {
	at, name := string(n.File.Path), pathName(n.Name)
	root, dir, direct := w.bindFrom(at, name)
	if !direct && !w.e.Help {
		return fmt.Errorf("its file %s has another path than its name %s, which only root can restore", at, name)
	}
	run := apartFS
	if !w.e.Help {
		run = enterFS // the thread that opens files ends with that
	}
	if !direct {
		return run("/", "/", func() error {
			if err := clearPlace(at); err != nil {
				return err
			}
			if err := bindRenamed(n.fd, n.Name, at); err != nil {
				return err
			}
			return errors.Join(w.unmake(run, at), dressFile(n.fd, at, n.File))
		})
	}
	if err := run("/", "/", func() error { return clearPlace(at) }); err != nil {
		return err
	}
	err := run(root, dir, func() error {
		umask := unix.Umask(int(0o777 &^ n.File.Mode & 0o777))
		defer unix.Umask(umask)
		if err := addressed(unix.SYS_BIND, n.fd, sockaddr(n.Name)); err != nil {
			return fmt.Errorf("bind to %s in %s: %w", name, dir, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return run("/", "/", func() error { return errors.Join(w.unmake(run, at), dressFile(n.fd, at, n.File)) })
}

// unmake has the file of a name removed again if the restore fails, unless somebody else has put another one there.
func (w *unixWorld) unmake(run func(root, dir string, f func() error) error, at string) error {
	var made unix.Stat_t
	if err := unix.Lstat(at, &made); err != nil {
		return fmt.Errorf("look at its file %s: %w", at, err)
	}
	if w.e.Undo == nil {
		return nil
	}
	w.e.Undo(func() error {
		return run("/", "/", func() error {
			var now unix.Stat_t
			if unix.Lstat(at, &now) != nil || now.Dev != made.Dev || now.Ino != made.Ino {
				return nil
			}
			return unix.Unlink(at)
		})
	})
	return nil
}

// bindFrom finds the root and the working directory from which a name leads to a path of ours.
func (w *unixWorld) bindFrom(at, name string) (root, dir string, ok bool) {
	if name[0] != '/' {
		dir, ok = strings.CutSuffix(at, "/"+name)
		return "/", path.Join("/", dir), ok
	}
	for i := range w.e.Manifest.FSs {
		if root = w.e.Manifest.FSs[i].Root; under(root, name) == at {
			return path.Join("/", root), "/", true
		}
	}
	return "/", "/", name == at
}

// rootOf is the root directory of a process, as seen from here.
func (w *unixWorld) rootOf(pid int) string {
	m := w.e.Manifest
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if int(t.PID) != pid || len(t.Threads) == 0 {
			continue
		}
		if fs := t.Threads[0].FS; fs > 0 && int(fs) <= len(m.FSs) && m.FSs[fs-1].Root != "" {
			return m.FSs[fs-1].Root
		}
	}
	return "/"
}

// inside is a path of ours as somebody with that root directory sees it.
func inside(root, at string) string {
	if root == "/" {
		return at
	}
	return strings.TrimPrefix(at, strings.TrimSuffix(root, "/"))
}

// bindRenamed gives a socket a name, and its file another.
func bindRenamed(fd int, name []byte, at string) error {
	g, err := newUnixStage(path.Dir(at))
	if err != nil {
		return err
	}
	short, err := g.bind(fd, name)
	if err == nil {
		err = os.Rename(short, at)
	}
	return errors.Join(err, g.close())
}

// dressFile gives a new socket file its owner and mode: that of the very socket if we may ask for
// it, as somebody else may write to the folder.
func dressFile(fd int, at string, f *unixFile) error {
	if file, err := fileOfSocket(fd); err == nil {
		defer unix.Close(file)
		at = "/proc/self/fd/" + strconv.Itoa(file)
	} else if !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := unix.Chown(at, int(f.UID), int(f.GID)); err != nil {
		return fmt.Errorf("give %s to uid %d and gid %d: %w", f.Path, f.UID, f.GID, err)
	}
	if err := unix.Chmod(at, f.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod of %s: %w", f.Path, err)
	}
	return nil
}
