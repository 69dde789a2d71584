package kind

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// regular is a regular file. One that still has its path is opened by it again; it may have
// grown or changed since, since the tree goes on writing after a checkpoint, but its offset
// must lie in it. One that was deleted while open is carried in the image, see carry.go.
type regular struct{}

// regularRec is the record of a regular file; Carried is set for a deleted one.
type regularRec struct {
	identity
	Hint    uint64   `cbor:"8,keyasint,omitempty"` // F_GET_RW_HINT; 0: not set
	Carried *carried `cbor:"9,keyasint,omitempty"`
	// Handle: the path leads elsewhere, and the name that the file has is not known.
	Handle *fileHandle `cbor:"10,keyasint,omitempty"`
}

func (regular) Name() string { return "file" }

func (regular) Match(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFREG && f.Flags&unix.O_PATH == 0 &&
		strings.HasPrefix(f.Link, "/") && !memFD{}.Match(f) && !isProcFile(f) && !isMQueue(f)
}

func (regular) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	if f.leased() && slices.ContainsFunc(all, func(g image.Finding) bool { return g.Severity == image.Refuse }) {
		return all // what follows may open it anew
	}
	if what, remedy := specialRefusal(f); what != "" {
		return append(all, f.refuse(what, remedy))
	}
	switch path, where := locate(f, s); where {
	case hidden:
		if f.handle() == nil {
			all = append(all, hiddenFinding(f, path))
		}
	case deleted:
		all = append(all, carryFindings(f, s)...)
	}
	return all
}

func (regular) Dump(f *Found, s *Scene, rec *image.File) error {
	r := regularRec{identity: identify(&f.Stat), Hint: writeHint(f.FD)}
	path, where := locate(f, s)
	rec.Path = path
	switch where {
	case hidden:
		if r.Handle = f.handle(); r.Handle == nil {
			return fmt.Errorf("%s: its path leads to another file", path)
		}
	case deleted:
		segment, err := streams(f, s)
		if err != nil {
			return fmt.Errorf("deleted file %s: %w", path, err)
		}
		if segment {
			if rec.Segment, err = s.Gone(f, path, writable(f.Flags)); err != nil {
				return fmt.Errorf("deleted file %s: %w", path, err)
			}
			break
		}
		c, err := carry(f, s, rec)
		if err != nil {
			return fmt.Errorf("deleted file %s: %w", path, err)
		}
		r.Carried = c
	}
	return encodeRec(rec, &r)
}

func (regular) Open(rec *image.File, e *Env) (int, error) {
	var r regularRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	if r.Carried != nil {
		return openCarried(rec, &r, e)
	}
	if rec.Segment != 0 {
		fd, err := openGone(rec, e)
		if err == nil {
			setWriteHint(fd, r.Hint, rec.Path, e)
		}
		return fd, err
	}
	if slices.ContainsFunc(rec.Locks, func(l image.Lock) bool { return l.Type == image.LockLease }) {
		plain := *rec
		plain.Flags &^= unix.O_ASYNC // the lease sets it again
		rec = &plain
	}
	fd, st, err := r.open(rec)
	if err != nil {
		return -1, err
	}
	warn, err := r.judge(rec, fd, st, e.rigor())
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	if fd, err = finished(fd, rec.Flags, 0, rec.Pos); err != nil {
		return -1, fmt.Errorf("open file %s: %w", rec.Path, err)
	}
	if warn = once(e, warn); warn != "" {
		e.Warn("%s", warn)
	}
	setWriteHint(fd, r.Hint, rec.Path, e)
	return fd, nil
}

// Independent is Independent.Independent: what the image carries may be shared by several files.
func (regular) Independent(rec *image.File) bool {
	var r regularRec
	return rec.Segment == 0 && decodeRec(rec, &r) == nil && r.Carried == nil
}

// open opens the file of a record.
func (r *regularRec) open(rec *image.File) (int, *unix.Stat_t, error) {
	if r.Handle != nil {
		return r.Handle.openHandle(rec.Path, openFlags(rec.Flags))
	}
	return openPath(rec, &r.identity)
}

func (regular) CheckOpen(rec *image.File, e *Env) (string, error) {
	var r regularRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	switch {
	case r.Carried != nil:
		return "", checkPlace("deleted file", rec.Path)
	case rec.Segment != 0:
		return "", nil // checked with the segments
	}
	if r.Handle != nil {
		fd, st, err := r.Handle.openHandle(rec.Path, unix.O_PATH)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		warn, err := r.judge(rec, fd, st, e.rigor())
		return once(e, warn), err
	}
	var st unix.Stat_t
	if err := statPath(rec.Path, r.Mode, &st); err != nil {
		return "", missing(rec.Path, err)
	}
	warn, err := r.judge(rec, -1, &st, e.rigor())
	if err != nil {
		return "", err
	}
	return once(e, warn), mayOpen(rec.Path, rec.Flags)
}

// judge compares what the path leads to now with the record. fd is the opened file, or -1
// if only its path was looked at.
func (r *regularRec) judge(rec *image.File, fd int, now *unix.Stat_t, how rigor) (warn string, err error) {
	if err := r.sameKind(rec.Path, now); err != nil {
		return "", err
	}
	var fs unix.Statfs_t
	if fd >= 0 {
		err = unix.Fstatfs(fd, &fs)
	} else {
		err = unix.Statfs(rec.Path, &fs)
	}
	if err != nil {
		return "", missing(rec.Path, err)
	}
	if pseudo(int64(fs.Type)) {
		return "", nil
	}
	// An offset behind the end is lawful; what may not be is that the end moved below it.
	if now.Size < r.Size && now.Size < rec.Pos {
		return "", fmt.Errorf("open file %s has %d bytes now, but it was being read or written at offset %d; put the old content back",
			rec.Path, now.Size, rec.Pos)
	}
	return verdict(rec.Path, how, r.replaced(now), r.changed(now))
}

// openPath opens the path of rec with its flags and says what was opened. It looks first:
// opening a fifo or a device by mistake could wait, or do something.
func openPath(rec *image.File, id *identity) (int, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := statPath(rec.Path, id.Mode, &st); err != nil {
		return -1, nil, missing(rec.Path, err)
	}
	if err := id.sameKind(rec.Path, &st); err != nil {
		return -1, nil, err
	}
	flags := openFlags(rec.Flags)
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		flags |= int(rec.Flags & unix.O_ASYNC) // it does nothing there, and F_SETFL does not set it
	}
	fd, err := unix.Open(rec.Path, flags, 0)
	if err != nil {
		return -1, nil, missing(rec.Path, err)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd) // never used
		return -1, nil, fmt.Errorf("open file %s: fstat: %w", rec.Path, err)
	}
	return fd, &st, nil
}
