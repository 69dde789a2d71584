package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// fanotify is a fanotify(7) group with its marks, on inodes, mounts and filesystems. They are set again on what
// their paths lead to. As with inotify, events that nobody has read cannot be looked at, and a checkpoint is
// refused until they are read; what happens between the checkpoint and the moment when the restored processes run is
// told to nobody.
//
// Groups that decide about the accesses of others (FAN_OPEN_PERM …) are refused: whoever opens such a file while the
// tree stands still would wait, ckptfs as well. So is one of a process without CAP_SYS_ADMIN, which is told
// less, as nobody can tell afterwards which of the two a group was.
type fanotify struct{}

type fanotifyRec struct {
	Flags      uint32         `cbor:"1,keyasint,omitempty"` // of fanotify_init(2)
	EventFlags uint32         `cbor:"2,keyasint,omitempty"` // of the descriptors that come with events
	Marks      []fanotifyMark `cbor:"3,keyasint,omitempty"` // in the order of fdinfo
}

// fanotifyMark is one mark.
type fanotifyMark struct {
	identity
	On      uint32 `cbor:"8,keyasint,omitempty"` // FAN_MARK_INODE, _MOUNT or _FILESYSTEM
	Flags   uint32 `cbor:"9,keyasint,omitempty"` // FAN_MARK_IGNORED_SURV_MODIFY, _EVICTABLE, _IGNORE
	Mask    uint32 `cbor:"10,keyasint,omitempty"`
	Ignored uint32 `cbor:"11,keyasint,omitempty"`
	Path    []byte `cbor:"12,keyasint"`
}

const (
	// fanotifyInit are the flags of fanotify_init(2) that this version knows (linux/fanotify.h): classes, limits, audit, what is
	// reported.
	fanotifyInit = unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | 0xc | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000
	// fanotifyPerm are the events that wait for an answer: FAN_OPEN_PERM, _ACCESS_PERM, _OPEN_EXEC_PERM, FAN_PRE_ACCESS.
	fanotifyPerm = 0x10000 | 0x20000 | 0x40000 | 0x100000
	// fanotifyMasks are the other bits of a mask that this version knows.
	fanotifyMasks = 0x1fff | 0x4000 | 0x8000 | unix.FAN_RENAME | unix.FAN_ONDIR | unix.FAN_EVENT_ON_CHILD
	// fanotifyMarks are the flags of a mark that fdinfo shows.
	fanotifyMarks = unix.FAN_MARK_IGNORED_SURV_MODIFY | unix.FAN_MARK_EVICTABLE | unix.FAN_MARK_IGNORE
	maxMarks      = 1 << 20
)

func (fanotify) Name() string { return "fanotify" }

func (fanotify) Match(f *Found) bool { return f.Link == "anon_inode:[fanotify]" }

func (fanotify) Check(f *Found, s *Scene) []image.Finding {
	const closeIt = "close it before the checkpoint and make it again afterwards"
	all := held(f, s)
	r, err := readFanotify(f)
	if err != nil {
		return append(all, f.refuse(err.Error(), closeIt))
	}
	for _, m := range r.Marks {
		if m.Mask&fanotifyPerm != 0 {
			return append(all, f.refuse("it decides about the accesses of others (FAN_OPEN_PERM …), who would wait while the tree stands still", closeIt))
		}
	}
	if capable, err := effective(int(f.Place().PID), unix.CAP_SYS_ADMIN); err != nil || !capable {
		all = append(all, f.refuse("a group of fanotify of a process without CAP_SYS_ADMIN is told less than a restored one would be", closeIt))
	}
	n, err := unix.IoctlGetInt(f.FD, unix.TIOCINQ)
	switch {
	case err != nil:
		all = append(all, f.refuse(fmt.Sprintf("cannot tell whether events wait to be read: FIONREAD: %v", err), closeIt))
	case n > 0:
		all = append(all, f.refuse(fmt.Sprintf("%d bytes of fanotify events wait to be read, and they cannot be looked at without taking them out", n),
			"try again when the program has read them"))
	}
	return all
}

// effective reports whether a process has a capability.
func effective(pid, capability int) (bool, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, err
	}
	st, err := procfs.ParseStatus(b)
	if err != nil {
		return false, fmt.Errorf("/proc/%d/status: %w", pid, err)
	}
	return st.CapEff>>capability&1 != 0, nil
}

func (fanotify) Dump(f *Found, _ *Scene, rec *image.File) error {
	r, err := readFanotify(f)
	if err != nil {
		return fmt.Errorf("fanotify: %w", err)
	}
	return encodeRec(rec, r)
}

// readFanotify makes the record from fdinfo.
func readFanotify(f *Found) (*fanotifyRec, error) {
	r, raw, err := parseFanotify(f.Info.Other)
	if err != nil {
		return nil, err
	}
	var inodes []rawWatch
	for i := range r.Marks {
		if r.Marks[i].On == unix.FAN_MARK_INODE {
			inodes = append(inodes, raw[i])
		}
	}
	found, err := locateWatched(inodes)
	if err != nil {
		return nil, fmt.Errorf("its fanotify mark %w", err)
	}
	mounts, err := mountsHere()
	if err != nil {
		return nil, err
	}
	for i := range r.Marks {
		m := &r.Marks[i]
		if m.On == unix.FAN_MARK_INODE {
			m.identity, m.Path = found[0].identity, []byte(found[0].path)
			found = found[1:]
			continue
		}
		k := slices.IndexFunc(mounts, func(at procfs.Mount) bool {
			return m.On == unix.FAN_MARK_MOUNT && at.ID == int(raw[i].ino) || m.On == unix.FAN_MARK_FILESYSTEM && at.Dev == raw[i].dev
		})
		var st unix.Stat_t
		if k < 0 {
			return nil, errors.New("it marks a mount or filesystem that cannot be seen from here")
		}
		if err := unix.Stat(mounts[k].Point, &st); err != nil || st.Dev != mounts[k].Dev {
			return nil, fmt.Errorf("it marks the mount %s, which another one covers", mounts[k].Point)
		}
		m.identity, m.Path = identity{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode}, []byte(mounts[k].Point)
	}
	return r, nil
}

// parseFanotify reads fdinfo: "fanotify flags:0 event-flags:8000", and for each mark "fanotify ino:9e7e sdev:800013 mflags:0
// mask:3b ignored_mask:0 fhandle-bytes:8 …", or mnt_id, or only sdev, all hexadecimal. For the id of a mount
// stands raw.ino.
func parseFanotify(lines []string) (r *fanotifyRec, raw []rawWatch, err error) {
	r = &fanotifyRec{}
	known := false
	for _, line := range lines {
		if !strings.HasPrefix(line, "fanotify ") {
			continue
		}
		f := fieldsOf(line)
		if _, ok := f.fields["event-flags"]; ok {
			r.Flags, r.EventFlags, known = uint32(f.number("flags", math.MaxUint32)), uint32(f.number("event-flags", math.MaxUint32)), f.err == nil
		} else {
			m := fanotifyMark{Flags: uint32(f.number("mflags", math.MaxUint32)), Mask: uint32(f.number("mask", math.MaxUint32)), Ignored: uint32(f.number("ignored_mask", math.MaxUint32))}
			w := rawWatch{wd: int32(len(raw) + 1)}
			switch {
			case f.fields["ino"] != "":
				f.inode(&w)
			case f.fields["mnt_id"] != "":
				m.On, w.ino = unix.FAN_MARK_MOUNT, f.number("mnt_id", math.MaxInt32)
			default:
				m.On, w.dev = unix.FAN_MARK_FILESYSTEM, f.device()
			}
			if m.Mask|m.Ignored != 0 || f.err != nil { // what it ignored ended when the file was changed
				r.Marks, raw = append(r.Marks, m), append(raw, w)
			}
		}
		if f.err != nil {
			return nil, nil, f.err
		}
	}
	if !known {
		return nil, nil, errors.New("its fdinfo does not tell how it was made")
	}
	return r, raw, r.valid()
}

// valid checks what fdinfo or an image says.
func (r *fanotifyRec) valid() error {
	if r.Flags&^fanotifyInit != 0 || len(r.Marks) > maxMarks {
		return fmt.Errorf("a group of fanotify has the flags %#x and %d marks, which this version does not know", r.Flags, len(r.Marks))
	}
	for i := range r.Marks {
		m := &r.Marks[i]
		if m.Flags&^fanotifyMarks != 0 || (m.Mask|m.Ignored)&^(fanotifyMasks|fanotifyPerm) != 0 || m.Mask|m.Ignored == 0 ||
			m.On != unix.FAN_MARK_INODE && m.On != unix.FAN_MARK_MOUNT && m.On != unix.FAN_MARK_FILESYSTEM {
			return fmt.Errorf("a mark of fanotify has the flags %#x and the masks %#x and %#x, which this version does not know", m.Flags, m.Mask, m.Ignored)
		}
	}
	return nil
}

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
