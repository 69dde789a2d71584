package kind

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// A deleted file that is mapped or executed is no open file description, so it has no record of
// its own: it is a Segment of the image, which mappings and open files share. What follows is
// what such files have in common with those that are only open, see carry.go.

// GoneFile reads the attributes of a deleted file, whose content the image is to carry, that is
// open for reading as fd. why tells that it cannot be made again.
func GoneFile(fd int, path string) (xattrs []image.XAttr, why string) {
	f := &Found{FD: fd, Link: path}
	if err := unix.Fstat(fd, &f.Stat); err != nil {
		return nil, "fstat: " + err.Error()
	}
	switch dev, err := shmDev(); {
	case err != nil:
		return nil, "cannot tell whether it is a file or shared memory: " + err.Error()
	case dev == f.Stat.Dev:
		return nil, "it is memory of the kernel or a driver, which cannot be made anew"
	case fsType(f) == unix.HUGETLBFS_MAGIC:
		return nil, "it was deleted and lies on a hugetlbfs, where it cannot be made anew yet"
	case pseudo(fsType(f)):
		return nil, "the kernel made it up, and it is gone"
	}
	if why, _ = specialRefusal(f); why != "" {
		return nil, why
	}
	all, err := userXAttrs(fd)
	if err != nil {
		return nil, "it was deleted, and " + err.Error()
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		xattrs = append(xattrs, image.XAttr{Name: name, Value: all[name]})
	}
	return xattrs, ""
}

// CountsNoLinks tells whether the link count of the file behind fd, on its filesystem, says
// nothing about whether it was deleted.
func CountsNoLinks(fd int) bool { return countsNoLinks(&Found{FD: fd}) }

// MakeGone makes an empty file without a name where path was, and opens it for reading and
// writing. With tmp it is made with O_TMPFILE and can be given a name.
func MakeGone(path string, tmp bool, e *Env) (int, error) {
	dir, err := placeFor(path, e)
	if err != nil {
		return -1, err
	}
	rec := image.File{Path: path, Flags: unix.O_RDWR}
	if tmp {
		rec.Flags |= unix.O_TMPFILE
	}
	return createUnnamed(&rec, dir)
}

// CheckGone tells whether MakeGone can make the file.
func CheckGone(path string) error { return checkPlace("deleted file", path) }

// openGone opens a deleted file that the image has as a segment.
func openGone(rec *image.File, e *Env) (int, error) {
	seg, err := e.Segment(rec.Segment)
	if err != nil {
		return -1, fmt.Errorf("deleted file %s: %w", rec.Path, err)
	}
	fd := -1
	if rec.Flags&(tmpFile|unix.O_ACCMODE) == tmpFile|unix.O_RDWR { // it is the description that made the file
		fd, err = dup(seg)
	} else {
		fd, err = reopen(seg, openFlags(rec.Flags))
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, lookupOnly, rec.Pos)
	}
	if err != nil {
		return -1, fmt.Errorf("deleted file %s: %w", rec.Path, err)
	}
	return fd, nil
}

// TmpFile reports whether the record is of a description that open(2) made with O_TMPFILE.
func TmpFile(rec *image.File) bool { return rec.Flags&tmpFile != 0 }
