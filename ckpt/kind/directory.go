package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// directory is an open directory, with the position of a readdir in progress.
type directory struct{}

func (directory) Name() string { return "dir" }

func (directory) Match(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFDIR && f.Flags&unix.O_PATH == 0 && strings.HasPrefix(f.Link, "/") && !isProcFile(f)
}

func (directory) Check(f *Found, s *Scene) []image.Finding { return checkByPath(f, s, "directory") }

func (directory) Dump(f *Found, s *Scene, rec *image.File) error { return dumpByPath(f, s, rec) }

func (d directory) Open(rec *image.File, e *Env) (int, error) { return openByPath(rec, e, d.judge) }

func (d directory) CheckOpen(rec *image.File, e *Env) (string, error) {
	return checkOpenByPath(rec, e, d.judge)
}

// judge wants the same directory. Entries come and go; that only matters if somebody stands
// in the middle of them.
func (directory) judge(rec *image.File, id *identity, now *unix.Stat_t, how rigor) (string, error) {
	entries := ""
	if (rec.Pos != 0 || how == strictly) && now.Mtim.Nano() != id.MTime {
		entries = fmt.Sprintf("had entries added or removed, and was being read at position %d,", rec.Pos)
	}
	return verdict(rec.Path, how, id.replaced(now), entries)
}

// judge compares what a path leads to now with what it led to: a warning, or why it cannot be used.
type judge func(rec *image.File, id *identity, now *unix.Stat_t, how rigor) (warn string, err error)

// checkByPath is Check of the kinds that only need their path to lead to them.
func checkByPath(f *Found, s *Scene, what string) []image.Finding {
	all := held(f, s)
	if what, remedy := specialRefusal(f); what != "" {
		return append(all, f.refuse(what, remedy))
	}
	switch path, where := locate(f, s); where {
	case hidden:
		all = append(all, hiddenFinding(f, path))
	case deleted:
		if f.Stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			return append(all, carryDirFindings(f)...)
		}
		all = append(all, f.refuse("the "+what+" was deleted while open", "close it, or make it again under its name and open it anew"))
	}
	return all
}

// dumpByPath is Dump of the kinds that may be directories.
func dumpByPath(f *Found, s *Scene, rec *image.File) (err error) {
	r := dirRec{identity: identify(&f.Stat)}
	path, where := locate(f, s)
	rec.Path = path
	if where == deleted {
		if r.Carried, err = carryDir(f); err != nil {
			return fmt.Errorf("deleted directory %s: %w", path, err)
		}
	}
	return encodeRec(rec, &r)
}

// openByPath is Open of these kinds.
func openByPath(rec *image.File, e *Env, j judge) (int, error) {
	var r dirRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	if r.Carried != nil {
		return openGoneDir(rec, &r, e)
	}
	id := &r.identity
	fd, now, err := openPath(rec, id)
	if err != nil {
		return -1, err
	}
	warn, err := id.judgeBy(j, rec, now, e.rigor())
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
	return fd, nil
}

// checkOpenByPath is CheckOpen of these kinds.
func checkOpenByPath(rec *image.File, e *Env, j judge) (string, error) {
	var r dirRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	if r.Carried != nil {
		return "", checkPlace("deleted directory", rec.Path)
	}
	id := &r.identity
	var st unix.Stat_t
	if err := statPath(rec.Path, id.Mode, &st); err != nil {
		return "", missing(rec.Path, err)
	}
	warn, err := id.judgeBy(j, rec, &st, e.rigor())
	if err != nil {
		return "", err
	}
	return once(e, warn), mayOpen(rec.Path, rec.Flags)
}

func (id *identity) judgeBy(j judge, rec *image.File, now *unix.Stat_t, how rigor) (string, error) {
	if err := id.sameKind(rec.Path, now); err != nil {
		return "", err
	}
	return j(rec, id, now, how)
}
