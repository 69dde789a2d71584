package kind

import (
	"errors"
	"fmt"
	"math"
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
