package kind

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// inotify is an inotify(7) instance: a set of watches under the numbers they had. A watch is of
// an inode, and set again on what its path leads to.
//
// Numbers are given out in a circle, so those that are free are passed over by watches on
// a pipe of our own, which are taken out again. How far the kernel had counted is nowhere to
// be read: after a restore it counts from the highest number in use, and one that was given
// back before may come again. Events that nobody has read cannot be looked at, so that a
// checkpoint is refused until they are read. What happens to the files between the checkpoint
// and the moment when the restored processes run is told to nobody.
type inotify struct{}

type inotifyRec struct {
	Watches []inotifyWatch `cbor:"1,keyasint,omitempty"` // ascending numbers
}

// inotifyWatch is one inotify_add_watch(2).
type inotifyWatch struct {
	identity
	WD   int32  `cbor:"8,keyasint"`
	Mask uint32 `cbor:"9,keyasint"` // IN_*
	Path []byte `cbor:"10,keyasint"`
}

const (
	// maxWD bounds the numbers of watches: each below costs two system calls of a restore.
	maxWD = 1 << 20
	// inotifyBits are those that a watch remembers: IN_EXCL_UNLINK and IN_ONESHOT beside the events.
	inotifyBits = unix.IN_ALL_EVENTS | unix.IN_EXCL_UNLINK | unix.IN_ONESHOT | unix.IN_UNMOUNT
)

func (inotify) Name() string { return "inotify" }

func (inotify) Match(f *Found) bool {
	return f.Link == "anon_inode:inotify" || f.Link == "anon_inode:[inotify]"
}

func (inotify) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	n, err := unix.IoctlGetInt(f.FD, unix.TIOCINQ)
	switch {
	case err != nil:
		all = append(all, f.refuse(fmt.Sprintf("cannot tell whether events wait to be read: FIONREAD: %v", err), "close it before the checkpoint"))
	case n > 0:
		all = append(all, f.refuse(fmt.Sprintf("%d bytes of inotify events wait to be read, and they cannot be looked at without taking them out", n),
			"try again when the program has read them"))
	}
	watches, err := s.watches(f)
	if err != nil {
		all = append(all, f.refuse(err.Error(), "remove the watch (inotify_rm_watch), or close it before the checkpoint"))
	}
	for _, w := range watches {
		if w.WD > maxWD {
			all = append(all, f.refuse(fmt.Sprintf("its inotify watches are numbered up to %d, and a restore can only reach %d", w.WD, maxWD),
				"close it and open it anew before the checkpoint"))
			break
		}
	}
	return all
}

func (inotify) Dump(f *Found, s *Scene, rec *image.File) error {
	watches, err := s.watches(f)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	return encodeRec(rec, &inotifyRec{watches})
}

// decodeInotify reads the record and checks it.
func decodeInotify(rec *image.File) (*inotifyRec, error) {
	var r inotifyRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	last := int32(0)
	for i := range r.Watches {
		w := &r.Watches[i]
		if w.WD <= last || w.WD > maxWD || w.Mask == 0 || w.Mask&^inotifyBits != 0 || len(w.Path) == 0 || w.Path[0] != '/' {
			return nil, fmt.Errorf("inotify: the image has a watch %d after %d, on %q with mask %#x", w.WD, last, w.Path, w.Mask)
		}
		last = w.WD
	}
	return &r, nil
}

// CheckOpen is Checker.CheckOpen.
func (inotify) CheckOpen(rec *image.File, e *Env) (string, error) {
	r, err := decodeInotify(rec)
	if err != nil {
		return "", err
	}
	for i := range r.Watches {
		w := &r.Watches[i]
		var st unix.Stat_t
		if err := statPath(string(w.Path), w.Mode, &st); err != nil {
			return "", missing(string(w.Path), err)
		}
		warn, err := w.judge(&st, e.rigor())
		if err != nil {
			return "", err
		}
		if warn = once(e, warn); warn != "" {
			e.Warn("%s", warn)
		}
		if w.Mode&unix.S_IFMT == unix.S_IFLNK {
			continue // everybody may read one
		}
		if err := mayOpen(string(w.Path), unix.O_RDONLY); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (w *inotifyWatch) judge(now *unix.Stat_t, how rigor) (string, error) {
	rec := image.File{Path: string(w.Path)}
	return w.judgeBy(pathOnly{}.judge, &rec, now, how)
}

func (inotify) Open(rec *image.File, e *Env) (int, error) {
	r, err := decodeInotify(rec)
	if err != nil {
		return -1, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return -1, fmt.Errorf("inotify_init1: %w: too many instances, raise /proc/sys/fs/inotify/max_user_instances, or the limit of open files (ulimit -Hn)", err)
	}
	if err != nil {
		return -1, fmt.Errorf("inotify_init1: %w", err)
	}
	if err := setWatches(fd, r.Watches, e); err != nil {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("inotify: %w", err)
	}
	if fd, err = finished(fd, rec.Flags, 0, 0); err != nil {
		return -1, fmt.Errorf("inotify: %w", err)
	}
	return fd, nil
}

// setWatches makes the watches of a new instance, and empties its queue.
func setWatches(fd int, watches []inotifyWatch, e *Env) error {
	var own [2]int // what is watched in passing: nobody else has it, so that no event comes
	if err := unix.Pipe2(own[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe2: %w", err)
	}
	defer unix.Close(own[0])
	defer unix.Close(own[1])
	next := int32(1)
	for i := range watches {
		w := &watches[i]
		for ; next < w.WD; next++ {
			if err := skipWatch(fd, own[0], next); err != nil {
				return err
			}
		}
		if err := w.add(fd, e); err != nil {
			return fmt.Errorf("watching %s again: %w", w.Path, err)
		}
		next++
	}
	return drainQueue(fd)
}

// skipWatch uses up a number. The event that this makes (IN_IGNORED) is taken out at times,
// since a full queue would be one more.
func skipWatch(fd, on int, want int32) error {
	got, err := addWatch(fd, on, unix.IN_DELETE_SELF)
	if err != nil {
		return fmt.Errorf("counting up to watch %d: %w", want, err)
	}
	if got != want {
		return fmt.Errorf("watch %d came out as %d", want, got)
	}
	if _, err := unix.InotifyRmWatch(fd, uint32(got)); err != nil {
		return fmt.Errorf("inotify_rm_watch of %d: %w", got, err)
	}
	if want%1024 == 0 {
		return drainQueue(fd)
	}
	return nil
}

// add makes one watch, on what its path leads to if that is a file of the same sort.
func (w *inotifyWatch) add(fd int, e *Env) error {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if w.Mode&unix.S_IFMT == unix.S_IFLNK {
		flags |= unix.O_NOFOLLOW
	}
	on, err := unix.Open(string(w.Path), flags, 0)
	if err != nil {
		return missing(string(w.Path), err)
	}
	defer unix.Close(on) // the watch is of the inode
	var st unix.Stat_t
	if err := unix.Fstat(on, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	warn, err := w.judge(&st, e.rigor())
	if err != nil {
		return err
	}
	if warn = once(e, warn); warn != "" {
		e.Warn("%s", warn)
	}
	got, err := addWatch(fd, on, w.Mask)
	if err != nil {
		return err
	}
	if got != w.WD {
		return fmt.Errorf("it was watch %d and came out as %d: two watched paths lead to one file now", w.WD, got)
	}
	return nil
}

// addWatch watches what a descriptor of ours leads to.
func addWatch(fd, on int, mask uint32) (int32, error) {
	got, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", on), mask)
	if errors.Is(err, unix.ENOSPC) {
		return 0, fmt.Errorf("inotify_add_watch: %w: too many watches, raise /proc/sys/fs/inotify/max_user_watches", err)
	}
	if err != nil {
		return 0, fmt.Errorf("inotify_add_watch: %w", err)
	}
	return int32(min(got, math.MaxInt32)), nil
}

// drainQueue empties the queue of an instance that does not block.
func drainQueue(fd int) error {
	b := make([]byte, 64<<10)
	for range maxDrain {
		_, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("emptying the queue: %w", err)
		}
	}
	return errors.New("emptying the queue: events come faster than they can be read")
}

// maxDrain bounds how often a queue is read until it is empty.
const maxDrain = 1 << 14

// Start is Starter.Start: it takes out what the restore has caused by opening and closing files.
func (inotify) Start(rec *image.File, fd int, p Process) error {
	nonblock := rec.Flags&unix.O_NONBLOCK != 0
	if !nonblock {
		if _, err := p.Syscall(unix.SYS_FCNTL, uint64(fd), unix.F_SETFL, uint64(rec.Flags|unix.O_NONBLOCK)); err != nil {
			return fmt.Errorf("inotify: F_SETFL: %w", err)
		}
	}
	const size = 2048 // an event has 272 bytes at most
	at, err := p.Put(make([]byte, size))
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		_, err := p.Syscall(unix.SYS_READ, uint64(fd), at, size)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) || try == maxDrain {
			return fmt.Errorf("inotify: emptying the queue (%d reads): %w", try, orShort(err))
		}
	}
	if nonblock {
		return nil
	}
	if _, err := p.Syscall(unix.SYS_FCNTL, uint64(fd), unix.F_SETFL, uint64(rec.Flags)); err != nil {
		return fmt.Errorf("inotify: F_SETFL: %w", err)
	}
	return nil
}

// sortWatches brings watches into the order of their numbers.
func sortWatches(all []inotifyWatch) {
	slices.SortFunc(all, func(a, b inotifyWatch) int { return int(a.WD) - int(b.WD) })
}
