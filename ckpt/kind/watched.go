package kind

import (
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// How the path of a watched inode is found: fdinfo has its file handle, open_by_handle_at(2)
// opens that, and the link of the descriptor is a path. Nothing here may open a file in
// earnest, since that is an event itself: O_PATH is none, and neither are stat(2) and chdir(2).

// rawWatch is a line of the fdinfo of an inotify instance.
type rawWatch struct {
	wd     int32
	ino    uint64
	dev    uint64
	mask   uint32
	htype  int32
	handle []byte
}

// parseWatch reads "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8
// fhandle-type:1 f_handle:7e9e0000640d1b6d", all hexadecimal. The handle is not
// there for filesystems that have none.
func parseWatch(line string) (w rawWatch, err error) {
	f := fieldsOf(line)
	w.wd = int32(f.number("wd", math.MaxInt32))
	w.mask = uint32(f.number("mask", math.MaxUint32))
	f.inode(&w)
	return w, f.err
}

// watchFields are the fields of such a line, or of one of fanotify.
type watchFields struct {
	line   string
	fields map[string]string
	err    error // of the first that is wrong
}

func fieldsOf(line string) *watchFields {
	f := &watchFields{line: line, fields: map[string]string{}}
	for _, word := range strings.Fields(line) {
		if key, value, ok := strings.Cut(word, ":"); ok {
			f.fields[key] = value
		}
	}
	return f
}

// number is a hexadecimal one.
func (f *watchFields) number(key string, limit uint64) uint64 {
	v, err := strconv.ParseUint(f.fields[key], 16, 64)
	if err == nil && v > limit {
		err = strconv.ErrRange
	}
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("its fdinfo has no good %s: %q", key, f.line)
	}
	return v
}

// device is the number of a filesystem.
func (f *watchFields) device() uint64 {
	sdev := f.number("sdev", math.MaxUint32)
	return unix.Mkdev(uint32(sdev>>20), uint32(sdev&(1<<20-1))) // the kernel's own dev_t
}

// inode fills in which inode is watched.
func (f *watchFields) inode(w *rawWatch) {
	w.ino, w.dev = f.number("ino", math.MaxUint64), f.device()
	if f.fields["f_handle"] == "" || f.err != nil {
		return
	}
	w.htype = int32(f.number("fhandle-type", math.MaxInt32))
	n := f.number("fhandle-bytes", 128) // MAX_HANDLE_SZ
	var err error
	if w.handle, err = hex.DecodeString(f.fields["f_handle"]); (err != nil || uint64(len(w.handle)) != n) && f.err == nil {
		f.err = fmt.Errorf("its fdinfo has no good f_handle: %q", f.line)
	}
}

// watches returns the watches of an inotify instance with their paths, by their numbers.
func (s *Scene) watches(f *Found) ([]inotifyWatch, error) {
	if all, ok := s.watched[f]; ok {
		return all, nil
	}
	var raw []rawWatch
	for _, line := range f.Info.Other {
		if strings.HasPrefix(line, "inotify ") {
			w, err := parseWatch(line)
			if err != nil {
				return nil, err
			}
			raw = append(raw, w)
		}
	}
	all := make([]inotifyWatch, 0, len(raw))
	for i := range raw {
		if w := &raw[i]; w.mask == 0 || w.mask&^inotifyBits != 0 {
			return nil, fmt.Errorf("its inotify watch %d has the mask %#x, which this version does not know", w.wd, w.mask)
		}
	}
	found, err := locateWatched(raw)
	if err != nil {
		return nil, fmt.Errorf("its inotify watch %w", err)
	}
	for i, w := range found {
		all = append(all, inotifyWatch{identity: w.identity, WD: raw[i].wd, Mask: raw[i].mask, Path: []byte(w.path)})
	}
	sortWatches(all)
	if s.watched == nil {
		s.watched = map[*Found][]inotifyWatch{}
	}
	s.watched[f] = all
	return all, nil
}

// located is a watched inode with a path that leads to it.
type located struct {
	identity
	path string
}

// locateWatched finds the paths of watched inodes.
func locateWatched(raw []rawWatch) (all []located, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	done := make(chan struct{})
	go func() { // on a thread with a working directory of its own
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		all, err = findWatched(raw)
	}()
	<-done
	return all, err
}

// findWatched changes the working directory of the thread.
func findWatched(raw []rawWatch) ([]located, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare(CLONE_FS): %w", err)
	}
	mounts, err := mountsHere()
	if err != nil {
		return nil, err
	}
	points, at := map[uint64][]string{}, ""
	for _, m := range mounts {
		points[m.Dev] = append(points[m.Dev], m.Point)
	}
	all := make([]located, 0, len(raw))
	for i := range raw {
		w := &raw[i]
		path, st, err := w.find(points[w.dev], &at)
		if err != nil {
			return nil, fmt.Errorf("%d is on inode %d of device %d:%d: %w", w.wd, w.ino, unix.Major(w.dev), unix.Minor(w.dev), err)
		}
		all = append(all, located{identity{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Rdev: st.Rdev}, path})
	}
	return all, nil
}

// mountsHere are the mounts of our mount namespace.
func mountsHere() ([]procfs.Mount, error) {
	b, err := quickread.File("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return procfs.ParseMountInfo(b)
}

// find returns a path that leads to the watched inode, by one of the places where its filesystem
// is mounted. at is the working directory of the thread, if it was changed.
func (w *rawWatch) find(points []string, at *string) (string, *unix.Stat_t, error) {
	err := fmt.Errorf("its filesystem is not mounted here")
	for _, point := range points {
		var st unix.Stat_t
		if serr := unix.Stat(point, &st); serr == nil && st.Ino == w.ino && st.Dev == w.dev {
			return point, &st, nil
		}
		if len(w.handle) == 0 {
			err = fmt.Errorf("the filesystem does not tell its path (it has no file handles)")
			continue
		}
		if *at != point {
			if cerr := unix.Chdir(point); cerr != nil {
				err = fmt.Errorf("%s: %w", point, cerr)
				continue
			}
			*at = point
		}
		path, ferr := w.open(&st)
		if ferr == nil {
			return path, &st, nil
		}
		err = ferr
		if st.Nlink == 0 && st.Ino == w.ino {
			break
		}
	}
	return "", nil, err
}

// open opens the handle in the filesystem of the working directory and returns its path.
func (w *rawWatch) open(st *unix.Stat_t) (string, error) {
	*st = unix.Stat_t{}
	fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(w.htype, w.handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("its path cannot be found: open_by_handle_at: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, st); err != nil {
		return "", fmt.Errorf("fstat: %w", err)
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	var now unix.Stat_t
	if err := statPath(path, st.Mode, &now); err == nil && now.Ino == st.Ino && now.Dev == st.Dev {
		return path, nil
	}
	if st.Nlink == 0 {
		return "", fmt.Errorf("it was deleted (%s) and lives on only because it is open or watched", strings.TrimSuffix(path, deletedMark))
	}
	return "", fmt.Errorf("its path cannot be found: the kernel shows %s, which leads elsewhere", path)
}
