package kind

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// place says whether the path of an open file still leads to it.
type place uint8

const (
	atPath  place = iota // it does
	deleted              // the file has no name left
	hidden               // the file has a name, but not this one
)

const deletedMark = " (deleted)"

// locate returns the path of f as the tree sees it, without the mark that the kernel adds to a
// deleted name, and whether it leads to f. The mark alone proves nothing: a file may be named
// "x (deleted)". What decides is what the path leads to now, and the link count.
//
// It is asked when a file is checked and when it is recorded, and answers the same: within a freeze nothing
// moves it that the tree could notice.
func locate(f *Found, s *Scene) (string, place) {
	if f.Twin != nil && f.Twin.Link == f.Link {
		return locate(f.Twin, s)
	}
	if f.at == nil || f.at.root != s.Root || f.at.link != f.Link {
		f.at = &location{root: s.Root, link: f.Link}
		f.at.path, f.at.where = locateNow(f, s.Root)
		if f.at.where == hidden && s.OtherName != nil && f.Stat.Nlink > 0 && f.Stat.Mode&unix.S_IFMT == unix.S_IFREG {
			if name := s.OtherName(f.at.path, &f.Stat); name != "" {
				f.at.path, f.at.where = name, atPath
			}
		}
	}
	return f.at.path, f.at.where
}

// location is what locate has found.
type location struct {
	root, link, path string
	where            place
}

func locateNow(f *Found, root string) (string, place) {
	link := f.Link
	if leadsTo(f, under(root, link)) {
		return link, atPath
	}
	// The link is what we see. The tree sees less of it if its root is not ours.
	if top, err := os.Readlink(root); err == nil && top != "/" {
		if rest, ok := strings.CutPrefix(link, top); ok && strings.HasPrefix(rest, "/") {
			if link = rest; leadsTo(f, under(root, link)) {
				return link, atPath
			}
		}
	}
	path, marked := strings.CutSuffix(link, deletedMark)
	if f.Stat.Nlink == 0 || marked && countsNoLinks(f) {
		return path, deleted
	}
	return path, hidden
}

// leadsTo tells whether a path, seen from here, leads to the inode of f.
func leadsTo(f *Found, path string) bool {
	var st unix.Stat_t
	err := statPath(path, f.Stat.Mode, &st)
	return err == nil && st.Dev == f.Stat.Dev && st.Ino == f.Stat.Ino
}

// countsNoLinks tells whether a deleted file of this filesystem can have a link count: an
// overlay shows the count of the layer below, and a FUSE server may show anything.
func countsNoLinks(f *Found) bool {
	switch fsType(f) {
	case unix.OVERLAYFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return true
	}
	return false
}

// under returns where a path of the tree is, seen from here.
func under(root, path string) string {
	if root == "" || root == "/" {
		return path
	}
	return strings.TrimSuffix(root, "/") + path
}

// statPath is stat(2), or lstat(2) where mode is that of a symbolic link.
func statPath(path string, mode uint32, st *unix.Stat_t) error {
	flags := unix.AT_NO_AUTOMOUNT
	if mode&unix.S_IFMT == unix.S_IFLNK {
		flags |= unix.AT_SYMLINK_NOFOLLOW
	}
	return unix.Fstatat(unix.AT_FDCWD, path, st, flags)
}

// hiddenFinding refuses a file that has a name which we do not know.
func hiddenFinding(f *Found, path string) image.Finding {
	if strings.HasSuffix(f.Link, deletedMark) {
		return f.refuse(fmt.Sprintf("its name %s was deleted, but the file still has %d other name(s), which the kernel does not tell and which are not in the same folder", path, f.Stat.Nlink),
			"close it, open it by one of its other names, or link it there again")
	}
	return f.refuse("its path leads to another file now or to none: something is mounted over it, or it lies outside the tree's mounts",
		"close it, or open it by a path that leads to it")
}

// identity is how a file is recognised when its path is opened again. The path itself is
// image.File.Path.
type identity struct {
	Dev   uint64 `cbor:"1,keyasint"`
	Ino   uint64 `cbor:"2,keyasint"`
	Mode  uint32 `cbor:"3,keyasint"` // st_mode
	Size  int64  `cbor:"4,keyasint,omitempty"`
	MTime int64  `cbor:"5,keyasint,omitempty"` // Unix ns
	Rdev  uint64 `cbor:"6,keyasint,omitempty"` // devices
}

func identify(st *unix.Stat_t) identity {
	return identity{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Size: st.Size, MTime: st.Mtim.Nano(), Rdev: st.Rdev}
}

// sameKind fails if now is of another file type, or another device, than the file was.
func (id *identity) sameKind(path string, now *unix.Stat_t) error {
	was, is := id.Mode&unix.S_IFMT, now.Mode&unix.S_IFMT
	if was != is {
		return fmt.Errorf("open file %s is %s now, but was %s; put the old file back", path, typeName(is), typeName(was))
	}
	if (is == unix.S_IFCHR || is == unix.S_IFBLK) && now.Rdev != id.Rdev {
		return fmt.Errorf("open file %s is device %d:%d now, but was %d:%d; put the old device file back", path,
			unix.Major(now.Rdev), unix.Minor(now.Rdev), unix.Major(id.Rdev), unix.Minor(id.Rdev))
	}
	return nil
}

// replaced tells in words that the path leads to another inode than it did, or "".
func (id *identity) replaced(now *unix.Stat_t) string {
	if now.Dev == id.Dev && now.Ino == id.Ino {
		return ""
	}
	return fmt.Sprintf("was replaced: it is inode %d on device %d:%d, was %d on %d:%d",
		now.Ino, unix.Major(now.Dev), unix.Minor(now.Dev), id.Ino, unix.Major(id.Dev), unix.Minor(id.Dev))
}

// changed tells in words what is different about the content, or "".
func (id *identity) changed(now *unix.Stat_t) string {
	switch {
	case now.Size > id.Size:
		return fmt.Sprintf("has grown from %d to %d bytes", id.Size, now.Size)
	case now.Size < id.Size:
		return fmt.Sprintf("has shrunk from %d to %d bytes", id.Size, now.Size)
	case now.Mtim.Nano() != id.MTime:
		return "was written to at " + time.Unix(0, now.Mtim.Nano()).UTC().Format(time.RFC3339Nano)
	}
	return ""
}

// rigor says which changes of open files are refused.
type rigor uint8

const (
	lenient  rigor = iota
	ownOnly        // that another file has taken the place of one which the process could not open itself
	strictly       // all
)

// verdict joins what was found about a path: an error if that is refused, a warning otherwise.
func verdict(path string, how rigor, replaced string, whats ...string) (warn string, err error) {
	if replaced != "" && throughLink(path) {
		return "", fmt.Errorf("open file %s %s, and its path leads through a symbolic link, which it did not when it was opened; put the old file back", path, replaced)
	}
	whats = append([]string{replaced}, whats...)
	var said []string
	for _, w := range whats {
		if w != "" {
			said = append(said, w)
		}
	}
	if len(said) == 0 {
		return "", nil
	}
	text := fmt.Sprintf("open file %s %s since the checkpoint", path, strings.Join(said, " and "))
	if replaced != "" && how == ownOnly {
		return "", fmt.Errorf("%s, and the process that is to have it may not open the new one itself; put the old file back, let the process open it (chown, chmod), or restore it with --policy files=any", text)
	}
	if how == strictly {
		return "", fmt.Errorf("%s; restore it with --policy files=changed, or put the old file back", text)
	}
	return text, nil
}

// typeName names a file type of st_mode.
func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a fifo"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	}
	return fmt.Sprintf("a file of mode %#o", mode)
}

// missing explains why a path cannot be looked at or opened.
func missing(path string, err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return fmt.Errorf("open file %s is missing; put it back and restore again: %w", path, err)
	}
	return fmt.Errorf("open file %s: %w", path, err)
}

// mayOpen fails if the caller's filesystem credentials do not allow the path to be opened with flags.
func mayOpen(path string, flags uint32) error {
	var mode uint32
	if readable(flags) {
		mode |= unix.R_OK
	}
	if writable(flags) {
		mode |= unix.W_OK
	}
	if mode == 0 {
		return nil
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS); err != nil {
		return missing(path, err)
	}
	return nil
}

// throughLink reports whether a path leads through a symbolic link. Links in /proc never name one that does.
func throughLink(path string) bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.ELOOP
}
