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
	fields := map[string]string{}
	for _, word := range strings.Fields(line) {
		if key, value, ok := strings.Cut(word, ":"); ok {
			fields[key] = value
		}
	}
	number := func(key string, base int, limit uint64) uint64 {
		v, perr := strconv.ParseUint(fields[key], base, 64)
		if perr == nil && v > limit {
			perr = strconv.ErrRange
		}
		if perr != nil && err == nil {
			err = fmt.Errorf("its fdinfo has no good %s: %q", key, line)
		}
		return v
	}
	w.wd = int32(number("wd", 16, math.MaxInt32))
	w.ino = number("ino", 16, math.MaxUint64)
	sdev := number("sdev", 16, math.MaxUint32)
	w.dev = unix.Mkdev(uint32(sdev>>20), uint32(sdev&(1<<20-1))) // the kernel's own dev_t
	w.mask = uint32(number("mask", 16, math.MaxUint32))
	if fields["f_handle"] == "" || err != nil {
		return w, err
	}
	w.htype = int32(number("fhandle-type", 16, math.MaxInt32))
	n := number("fhandle-bytes", 16, 128) // MAX_HANDLE_SZ
	if w.handle, err = hex.DecodeString(fields["f_handle"]); err != nil || uint64(len(w.handle)) != n {
		return w, fmt.Errorf("its fdinfo has no good f_handle: %q", line)
	}
	return w, nil
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
	var all []inotifyWatch
	var err error
	done := make(chan struct{})
	go func() { // on a thread with a working directory of its own
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		all, err = findWatched(raw)
	}()
	<-done
	if err != nil {
		return nil, err
	}
	sortWatches(all)
	if s.watched == nil {
		s.watched = map[*Found][]inotifyWatch{}
	}
	s.watched[f] = all
	return all, nil
}

// findWatched finds the paths of watches. It changes the working directory of the thread.
func findWatched(raw []rawWatch) ([]inotifyWatch, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare(CLONE_FS): %w", err)
	}
	b, err := quickread.File("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts, err := procfs.ParseMountInfo(b)
	if err != nil {
		return nil, err
	}
	points, at := map[uint64][]string{}, ""
	for _, m := range mounts {
		points[m.Dev] = append(points[m.Dev], m.Point)
	}
	all := make([]inotifyWatch, 0, len(raw))
	for i := range raw {
		w := &raw[i]
		if w.mask == 0 || w.mask&^inotifyBits != 0 {
			return nil, fmt.Errorf("its inotify watch %d has the mask %#x, which this version does not know", w.wd, w.mask)
		}
		path, st, err := w.find(points[w.dev], &at)
		if err != nil {
			return nil, fmt.Errorf("its inotify watch %d is on inode %d of device %d:%d: %w", w.wd, w.ino, unix.Major(w.dev), unix.Minor(w.dev), err)
		}
		id := identity{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Rdev: st.Rdev}
		all = append(all, inotifyWatch{identity: id, WD: w.wd, Mask: w.mask, Path: []byte(path)})
	}
	return all, nil
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
