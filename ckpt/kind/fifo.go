package kind

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// fifo is an open file description of a named pipe, see fifo(7). It is opened by its path
// again; a fifo that was deleted while open is made and deleted again.
type fifo struct{}

func (fifo) Name() string { return "fifo" }

func (fifo) Match(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFIFO && f.Flags&unix.O_PATH == 0 && strings.HasPrefix(f.Link, "/")
}

func (fifo) Check(f *Found, s *Scene) []image.Finding {
	all := append(held(f, s), contentFindings(f, s)...)
	path, where := locate(f, s)
	if where == hidden {
		return append(all, hiddenFinding(f, path))
	}
	fate := "it is connected again if it still has the fifo open then, but what goes through until then is lost"
	if where == deleted {
		fate = "the fifo was deleted, so that it will not reach the restored one"
	}
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_WRONLY); pid != 0 && readable(f.Flags) {
		all = append(all, f.lockedAway(fmt.Sprintf("pid %d outside the tree has it open too", pid))...)
		all = append(all, f.lose(fmt.Sprintf("pid %d outside the tree writes to this fifo: %s", pid, fate), "checkpoint a tree that holds both ends"))
	}
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY); pid != 0 && writable(f.Flags) {
		all = append(all, f.lockedAway(fmt.Sprintf("pid %d outside the tree has it open too", pid))...)
		all = append(all, f.lose(fmt.Sprintf("pid %d outside the tree reads from this fifo: %s", pid, fate), "checkpoint a tree that holds both ends"))
	}
	return all
}

func (fifo) Dump(f *Found, s *Scene, rec *image.File) error {
	r, err := describePipe(f, s, rec)
	if err != nil {
		return fmt.Errorf("fifo %s: %w", f.Link, err)
	}
	path, where := locate(f, s)
	rec.Path, r.Deleted = path, where == deleted
	return encodeRec(rec, r)
}

func (fifo) Open(rec *image.File, e *Env) (int, error) {
	var r pipeRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	ends, err := recordedEnds(rec.Kind, &r, e)
	if err != nil {
		return -1, err
	}
	if r.Deleted && r.Outside && writable(rec.Flags) && !ends.read {
		return outFile(e)
	}
	// Held open both ways meanwhile, so that no open below waits for another end.
	h, err := shared(e, inodeKey("fifo", r.Dev, r.Ino), func() (*fifoHolder, error) { return holdFifo(rec, &r, ends, e) })
	fd := -1
	if err == nil {
		fd, err = h.open(rec, &r)
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, lookupOnly, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("fifo %s: %w", rec.Path, err)
	}
	return fd, nil
}

func (fifo) CheckOpen(rec *image.File, e *Env) (string, error) {
	var r pipeRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	if r.Deleted {
		return "", checkPlace("deleted fifo", rec.Path)
	}
	var st unix.Stat_t
	if err := statPath(rec.Path, r.Mode, &st); err != nil {
		return "", missing(rec.Path, err)
	}
	warn, err := r.judge(rec.Path, &st, e.rigor())
	if err != nil {
		return "", err
	}
	return once(e, warn), mayOpen(rec.Path, rec.Flags)
}

// judge compares a fifo with the record.
func (r *pipeRec) judge(path string, now *unix.Stat_t, how rigor) (string, error) {
	if err := r.sameKind(path, now); err != nil {
		return "", err
	}
	return verdict(path, how, r.replaced(now))
}

// fifoHolder holds a fifo open while its records are being opened.
type fifoHolder struct {
	fd      int
	unnamed bool
}

func (h *fifoHolder) Close() error { return unix.Close(h.fd) }

func (h *fifoHolder) open(rec *image.File, r *pipeRec) (int, error) {
	plain := *rec
	plain.Flags &^= unix.O_DIRECT // F_SETFL can set it, open cannot
	if h.unnamed {
		return reopen(h.fd, openFlags(plain.Flags))
	}
	fd, _, err := openPath(&plain, &r.identity)
	return fd, err
}

// holdFifo opens the fifo, or makes a nameless one, and brings capacity and content back.
func holdFifo(rec *image.File, r *pipeRec, ends pipeEnds, e *Env) (*fifoHolder, error) {
	h, err := openHolder(rec, r, e)
	if err != nil {
		return nil, err
	}
	if err := fillFifo(h.fd, r, ends, e); err != nil {
		unix.Close(h.fd) // never used
		return nil, err
	}
	return h, nil
}

func openHolder(rec *image.File, r *pipeRec, e *Env) (*fifoHolder, error) {
	if r.Deleted {
		return makeUnnamedFifo(rec, e)
	}
	var st unix.Stat_t
	if err := statPath(rec.Path, r.Mode, &st); err != nil {
		return nil, missing(rec.Path, err)
	}
	warn, err := r.judge(rec.Path, &st, e.rigor())
	if err != nil {
		return nil, err
	}
	if warn = once(e, warn); warn != "" {
		e.Warn("%s", warn)
	}
	fd, err := unix.Open(rec.Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.EACCES { // we may use one end only; opening that for reading never waits
		fd, err = unix.Open(rec.Path, int(rec.Flags&unix.O_ACCMODE)|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, missing(rec.Path, err)
	}
	return &fifoHolder{fd: fd}, nil
}

// makeUnnamedFifo makes a fifo under the old name, or one that is free, and unlinks it.
func makeUnnamedFifo(rec *image.File, e *Env) (*fifoHolder, error) {
	const again = "was deleted while open and cannot be made again: %w"
	dir, err := placeFor(rec.Path, e)
	if err != nil {
		return nil, fmt.Errorf(again, err)
	}
	name, err := underFreeName(dir, filepath.Base(rec.Path), func(name string) error { return unix.Mkfifo(name, 0o600) })
	if err != nil {
		return nil, fmt.Errorf(again, err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err2 := unix.Unlink(name); err == nil && err2 != nil {
		unix.Close(fd) // never used
		err = err2
	}
	if err != nil {
		return nil, fmt.Errorf(again, err)
	}
	return &fifoHolder{fd: fd, unnamed: true}, nil
}

// fillFifo is fillPipe for a fifo that others may have open: what is in it already must
// be what was in it then.
func fillFifo(fd int, r *pipeRec, ends pipeEnds, e *Env) error {
	have, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("FIONREAD: %w", err)
	}
	if have == 0 {
		return fillPipe(fd, r, ends, e)
	}
	now, err := peek(fd)
	if err != nil {
		return err
	}
	was, err := ends.content(e)
	if err != nil {
		return err
	}
	if ends.read && !(bytes.Equal(now.data, was.data) && slices.Equal(now.parts, was.parts)) {
		return fmt.Errorf("another process has it open and %d other bytes are in it; end that process or read it empty", have)
	}
	return nil
}
