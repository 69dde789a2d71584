package kind

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// A directory that was deleted while open is empty and stays so: nothing can be made in it. The
// restore makes it again where it was, or under another name if that is taken, lets every
// record of it open it and removes it when all files are open. Deleted files and directories
// inside of it are made in it, so that ".." leads where it did; folders of such files that
// nobody has open are made for the time, too.

// dirRec is the record of a directory, open or O_PATH. Carried is set for a deleted one.
type dirRec struct {
	identity
	Carried *carried `cbor:"9,keyasint,omitempty"` // its owner, access time and attributes
}

// carryDir describes a deleted directory.
func carryDir(f *Found) (*carried, error) {
	c := &carried{UID: f.Stat.Uid, GID: f.Stat.Gid, ATime: f.Stat.Atim.Nano()}
	fd, err := readableDir(f.FD)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // only asked for its attributes
	c.XAttrs, err = userXAttrs(fd)
	return c, err
}

// readableDir opens a directory, which may be open with O_PATH, for reading.
func readableDir(fd int) (int, error) {
	return reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK)
}

// carryDirFindings refuses deleted directories with attributes that cannot be set again.
func carryDirFindings(f *Found) []image.Finding {
	if _, err := carryDir(f); err != nil {
		return []image.Finding{f.refuse("it was deleted while open, and "+err.Error(), "remove the attribute, or close it before the checkpoint")}
	}
	return nil
}

// GoneDirectory describes the deleted directory that a magic link of /proc leads to, for one
// that is no open file: a working directory. link is what the magic link reads.
func GoneDirectory(magic, link string) (image.File, error) {
	rec := image.File{Kind: directory{}.Name(), Flags: unix.O_RDONLY | unix.O_DIRECTORY}
	fd, err := unix.Open(magic, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return rec, fmt.Errorf("open %s: %w", magic, err)
	}
	defer unix.Close(fd) // only looked at
	f := &Found{FD: fd, Link: link, Flags: rec.Flags}
	if err := unix.Fstat(fd, &f.Stat); err != nil {
		return rec, fmt.Errorf("fstat %s: %w", magic, err)
	}
	r := dirRec{identity: identify(&f.Stat)}
	if r.Carried, err = carryDir(f); err != nil {
		return rec, fmt.Errorf("deleted directory %s: %w", link, err)
	}
	rec.Path = strings.TrimSuffix(link, deletedMark)
	return rec, encodeRec(&rec, &r)
}

// ghostDirs are the directories that are made for the time of a restore.
type ghostDirs struct {
	byPath map[string]string    // where a path of the image is
	byKey  map[string]*ghostDir // those that somebody has open, by inode
	made   []*ghostDir          // in the order in which they were made
}

// ghostDir is one of them.
type ghostDir struct {
	at  string
	fd  int     // -1: nobody has it open
	rec *dirRec // nil: nobody has it open
}

func ghosts(e *Env) (*ghostDirs, error) {
	return shared(e, "deleted directories", func() (*ghostDirs, error) {
		return &ghostDirs{byPath: map[string]string{}, byKey: map[string]*ghostDir{}}, nil
	})
}

// Close removes the directories, the last one first, and then gives them the mode and times that
// they must not have before.
func (g *ghostDirs) Close() error {
	var errs []error
	for i := len(g.made) - 1; i >= 0; i-- {
		d := g.made[i]
		err := unix.Rmdir(d.at)
		if err != nil && err != unix.ENOENT && (d.rec != nil || err != unix.ENOTEMPTY) { // what is in a folder now is somebody's
			errs = append(errs, fmt.Errorf("removing the directory %s, which is to be a deleted one: %w", d.at, err))
		}
		if d.rec != nil {
			errs = append(errs, d.settle())
		}
	}
	return errors.Join(errs...)
}

// settle gives a removed directory its last attributes.
func (d *ghostDir) settle() error {
	defer unix.Close(d.fd) // it lives in descriptors elsewhere
	if err := unix.Fchmod(d.fd, d.rec.Mode&07777); err != nil {
		return fmt.Errorf("mode of a deleted directory: %w", err)
	}
	times := [2]unix.Timespec{unix.NsecToTimespec(d.rec.Carried.ATime), unix.NsecToTimespec(d.rec.MTime)}
	if err := unix.UtimesNanoAt(d.fd, "", times[:], unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("times of a deleted directory: %w", err)
	}
	return nil
}

// openGoneDir opens the deleted directory of rec.
func openGoneDir(rec *image.File, r *dirRec, e *Env) (int, error) {
	g, err := ghosts(e)
	if err != nil {
		return -1, err
	}
	d, err := g.makeGone(rec, r, e)
	if err != nil {
		return -1, fmt.Errorf("deleted directory %s: %w", rec.Path, err)
	}
	fd, err := unix.Open(d.at, openFlags(rec.Flags), 0)
	if err == nil {
		fd, err = finished(fd, rec.Flags, 0, rec.Pos)
	}
	if err != nil {
		return -1, fmt.Errorf("deleted directory %s, made again as %s: %w", rec.Path, d.at, err)
	}
	return fd, nil
}

// makeGone makes the deleted directory of rec, once.
func (g *ghostDirs) makeGone(rec *image.File, r *dirRec, e *Env) (*ghostDir, error) {
	key := inodeKey("deleted directory", r.Dev, r.Ino)
	if d := g.byKey[key]; d != nil {
		return d, nil
	}
	d, err := g.make(rec.Path, e)
	if err != nil {
		return nil, err
	}
	if d.fd, err = unix.Open(d.at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("opening it: %w", err)
	}
	d.rec, g.byKey[key] = r, d
	for name, value := range r.Carried.XAttrs {
		if err := unix.Fsetxattr(d.fd, name, value, 0); err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return d, giveTo(d.fd, r.Carried.UID, r.Carried.GID)
}

// make makes a directory for the time, under its path or one that is free.
func (g *ghostDirs) make(path string, e *Env) (*ghostDir, error) {
	if filepath.Dir(path) == path {
		return nil, fmt.Errorf("%s cannot be made", path)
	}
	dir, err := g.place(filepath.Dir(path), e)
	if err != nil {
		return nil, err
	}
	name, err := underFreeName(dir, filepath.Base(path), func(name string) error { return unix.Mkdir(name, 0o700) })
	if err != nil {
		return nil, err
	}
	d := &ghostDir{at: name, fd: -1}
	g.made = append(g.made, d)
	g.byPath[path] = name
	return d, nil
}

// place returns a directory for what was at a path of the image: itself if it is there, or one
// that is made for the time.
func (g *ghostDirs) place(path string, e *Env) (string, error) {
	if at, ok := g.byPath[path]; ok {
		return at, nil
	}
	if rec, r := goneDirAt(path, e); rec != nil {
		d, err := g.makeGone(rec, r, e)
		if err != nil {
			return "", fmt.Errorf("deleted directory %s: %w", path, err)
		}
		return d.at, nil
	}
	if isDir(path) {
		return path, nil
	}
	d, err := g.make(path, e)
	if err != nil {
		return "", err
	}
	return d.at, nil
}

// goneDirAt returns the record of a deleted directory with this path.
func goneDirAt(path string, e *Env) (*image.File, *dirRec) {
	look := func(rec *image.File) *dirRec {
		var r dirRec
		if rec.Path != path || rec.Kind != (directory{}).Name() && rec.Kind != (pathOnly{}).Name() || decodeRec(rec, &r) != nil ||
			r.Carried == nil || r.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil // also one that cannot be read: opening it says so
		}
		return &r
	}
	for i := range e.Manifest.Files {
		if r := look(&e.Manifest.Files[i]); r != nil {
			return &e.Manifest.Files[i], r
		}
	}
	for i := range e.Manifest.FSs {
		if r := look(&e.Manifest.FSs[i].CwdFile); r != nil {
			return &e.Manifest.FSs[i].CwdFile, r
		}
	}
	return nil, nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// placeFor returns the directory to make a deleted file of that path in.
func placeFor(path string, e *Env) (string, error) {
	g, err := ghosts(e)
	if err != nil {
		return "", err
	}
	return g.place(filepath.Dir(path), e)
}

// underFreeName makes a file in dir that is to be deleted again: under its old name, so that links
// to it read as before, or another one where that is taken. It returns the path.
func underFreeName(dir, base string, create func(path string) error) (string, error) {
	path := filepath.Join(dir, base)
	for range 8 {
		err := create(path)
		if err == nil {
			return path, nil
		}
		if err != unix.EEXIST && err != unix.ENAMETOOLONG {
			return "", fmt.Errorf("making it in %s: %w", dir, err)
		}
		hidden := ".ckptfs-" + rand.Text()
		if path = filepath.Join(dir, hidden+"."+base); err == unix.ENAMETOOLONG || len(hidden)+1+len(base) > unix.NAME_MAX {
			path = filepath.Join(dir, hidden)
		}
	}
	return "", fmt.Errorf("no free name in %s", dir)
}

// checkPlace tells whether a deleted file or directory can be made where it was: in its folder, or
// in the nearest one above that there is.
func checkPlace(what, path string) error {
	dir := filepath.Dir(path)
	for !isDir(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("%s %s cannot be made again in %s; make that folder writable: %w", what, path, dir, err)
	}
	return nil
}
