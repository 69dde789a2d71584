package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// decodeFanotify reads the record and checks it.
func decodeFanotify(rec *image.File) (*fanotifyRec, error) {
	var r fanotifyRec
	err := decodeRec(rec, &r)
	if err == nil {
		err = r.valid()
	}
	for i := range r.Marks {
		m := &r.Marks[i]
		if err == nil && (len(m.Path) == 0 || m.Path[0] != '/' || (m.Mask|m.Ignored)&fanotifyPerm != 0) {
			err = fmt.Errorf("a mark of fanotify is on %q with the mask %#x", m.Path, m.Mask)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("fanotify: the image: %w", err)
	}
	return &r, nil
}

// CheckOpen is Checker.CheckOpen.
func (fanotify) CheckOpen(rec *image.File, e *Env) (string, error) {
	r, err := decodeFanotify(rec)
	if err != nil {
		return "", err
	}
	for i := range r.Marks {
		fd, err := r.Marks[i].find(e)
		if err != nil {
			return "", err
		}
		unix.Close(fd) // only to see whether it is there
	}
	return "", nil
}

// find opens what a mark is on, if it still is a file of the same sort.
func (m *fanotifyMark) find(e *Env) (fd int, err error) {
	path := string(m.Path)
	flags := unix.O_PATH | unix.O_CLOEXEC
	if m.Mode&unix.S_IFMT == unix.S_IFLNK {
		flags |= unix.O_NOFOLLOW
	}
	if fd, err = unix.Open(path, flags, 0); err != nil {
		return -1, missing(path, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd) // it is another file
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("fstat of %s: %w", path, err)
	}
	if m.On != unix.FAN_MARK_INODE {
		mounts, err := mountsHere()
		if err != nil {
			return -1, err
		}
		if !slices.ContainsFunc(mounts, func(at procfs.Mount) bool { return at.Point == path }) {
			return -1, fmt.Errorf("fanotify: nothing is mounted on %s; mount it first", path)
		}
	}
	warn, err := m.judgeBy(pathOnly{}.judge, &image.File{Path: path}, &st, e.rigor())
	if err != nil {
		return -1, err
	}
	if warn = once(e, warn); warn != "" {
		e.Warn("%s", warn)
	}
	return fd, nil
}

func (fanotify) Open(rec *image.File, e *Env) (int, error) {
	r, err := decodeFanotify(rec)
	if err != nil {
		return -1, err
	}
	fd, err := unix.FanotifyInit(uint(r.Flags), uint(r.EventFlags))
	if err != nil {
		return -1, fmt.Errorf("fanotify_init with flags %#x: %w (see /proc/sys/fs/fanotify for its limits)", r.Flags, err)
	}
	unix.CloseOnExec(fd) // fdinfo shows for ever how it was made
	err = unix.SetNonblock(fd, true)
	for i := range slices.Backward(r.Marks) { // fdinfo shows the last one first
		if err == nil {
			err = r.Marks[i].add(fd, e)
		}
	}
	if err == nil {
		err = r.compare(fd)
	}
	if err == nil {
		err = drainFanotify(fd)
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("fanotify: %w", err)
	}
	if fd, err = finished(fd, rec.Flags, 0, 0); err != nil {
		return -1, fmt.Errorf("fanotify: %w", err)
	}
	return fd, nil
}

// add sets one mark.
func (m *fanotifyMark) add(fd int, e *Env) error {
	on, err := m.find(e)
	if err != nil {
		return err
	}
	defer unix.Close(on) // the mark is on the inode
	path := fmt.Sprintf("/proc/self/fd/%d", on)
	mask, kept := m.Mask, m.Flags&unix.FAN_MARK_EVICTABLE
	if m.On != unix.FAN_MARK_INODE || m.Mode&unix.S_IFMT != unix.S_IFDIR {
		mask &^= unix.FAN_EVENT_ON_CHILD // the kernel sets it itself where it means nothing
	}
	if mask != 0 {
		if err := unix.FanotifyMark(fd, uint(unix.FAN_MARK_ADD|m.On|kept), uint64(mask), unix.AT_FDCWD, path); err != nil {
			return fmt.Errorf("fanotify_mark of %s with mask %#x: %w", m.Path, mask, err)
		}
	}
	if m.Ignored == 0 {
		return nil
	}
	how := uint32(unix.FAN_MARK_IGNORED_MASK)
	if m.Flags&unix.FAN_MARK_IGNORE != 0 {
		how = unix.FAN_MARK_IGNORE
	}
	how |= m.Flags & (unix.FAN_MARK_IGNORED_SURV_MODIFY | unix.FAN_MARK_EVICTABLE)
	if err := unix.FanotifyMark(fd, uint(unix.FAN_MARK_ADD|m.On|how), uint64(m.Ignored), unix.AT_FDCWD, path); err != nil {
		return fmt.Errorf("fanotify_mark of %s, to ignore %#x: %w", m.Path, m.Ignored, err)
	}
	return nil
}

// compare looks whether the marks are as they were.
func (r *fanotifyRec) compare(fd int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return err
	}
	is, _, err := parseFanotify(strings.Split(string(b), "\n"))
	if err != nil {
		return err
	}
	count := map[[4]uint32]int{}
	key := func(m *fanotifyMark) [4]uint32 { return [4]uint32{m.On, m.Flags, m.Mask, m.Ignored} }
	for i := range is.Marks {
		count[key(&is.Marks[i])]++
	}
	for i := range r.Marks {
		m := &r.Marks[i]
		if count[key(m)]--; count[key(m)] < 0 {
			return fmt.Errorf("the mark on %s with flags %#x and masks %#x and %#x came out unlike", m.Path, m.Flags, m.Mask, m.Ignored)
		}
	}
	if is.Flags != r.Flags || is.EventFlags != r.EventFlags || len(is.Marks) != len(r.Marks) {
		return fmt.Errorf("it came out with flags %#x, event flags %#x and %d marks; they were %#x, %#x and %d", is.Flags, is.EventFlags, len(is.Marks), r.Flags, r.EventFlags, len(r.Marks))
	}
	return nil
}

// drainFanotify takes out the events of a group, which must not block, and closes the files that come with them.
func drainFanotify(fd int) error {
	b := make([]byte, 64<<10)
	for range maxDrain {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("emptying the queue: %w", err)
		}
		closeEvents(b[:n])
	}
	return errors.New("emptying the queue: events come faster than they can be read")
}

// closeEvents closes the files and pidfds that come with events: struct fanotify_event_metadata, then records of
// struct fanotify_event_info_header and what it says.
func closeEvents(b []byte) {
	ne := binary.NativeEndian
	const infoPIDFD, infoLeast = 4, 8 // a type of record, and how long that is
	for len(b) >= unix.FAN_EVENT_METADATA_LEN {
		size, from := int(ne.Uint32(b)), int(ne.Uint16(b[6:]))
		if size < unix.FAN_EVENT_METADATA_LEN || size > len(b) {
			return
		}
		fds := []int{int(int32(ne.Uint32(b[16:])))}
		for info := b[min(from, size):size]; len(info) >= infoLeast; {
			if info[0] == infoPIDFD {
				fds = append(fds, int(int32(ne.Uint32(info[4:]))))
			}
			info = info[min(len(info), max(int(ne.Uint16(info[2:])), infoLeast)):]
		}
		for _, fd := range fds {
			if fd >= 0 {
				unix.Close(fd) // of the event only
			}
		}
		b = b[size:]
	}
}

// Start is Starter.Start: it takes out what the restore has caused by opening and closing files.
func (fanotify) Start(rec *image.File, fd int, p Process) error {
	own, err := fetchFrom(p, fd)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := unix.SetNonblock(own, true); err != nil {
		return fmt.Errorf("fanotify: F_SETFL: %w", err)
	}
	err = drainFanotify(own)
	if _, serr := unix.FcntlInt(uintptr(own), unix.F_SETFL, int(rec.Flags)); err == nil && serr != nil {
		err = fmt.Errorf("F_SETFL: %w", serr)
	}
	if err != nil {
		return fmt.Errorf("fanotify: %w", err)
	}
	return nil
}
