package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// checkAll checks everything that can be checked before a process is made. What it finds is
// an error that names what is in the way; the machine is as it was.
func (j *job) checkAll(ctx context.Context, deadline time.Time) error {
	facts, err := lookHost()
	if err != nil {
		return err
	}
	if err := checkHost(j.m, facts); err != nil {
		return err
	}
	if err := checkCaller(j.m, j.opt.CallerUID); err != nil {
		return err
	}
	if err := checkTasks(j.m); err != nil {
		return err
	}
	if err := checkMemory(j.m); err != nil {
		return err
	}
	if err := checkHugePages(j.m); err != nil {
		return err
	}
	if err := checkGone(j.m); err != nil {
		return err
	}
	if err := checkMapped(j.m); err != nil {
		return err
	}
	if err := j.checkFiles(); err != nil {
		return err
	}
	err = waitPIDs(ctx, wantedPIDs(j.m), deadline)
	if taken := (*PIDTakenError)(nil); errors.As(err, &taken) {
		taken.Holds = j.stillLocked(taken.PID)
	}
	if err != nil {
		return err
	}
	if err := j.checkSysV(); err != nil { // now that what was killed has let go of it
		return err
	}
	if err := j.checkAIO(); err != nil {
		return err
	}
	return j.checkIPC()
}

// checkSharing checks that objects are shared only as processes made by fork and threads share them,
// and that the own descriptor table of a thread is that of no other process: a checkpoint refuses the rest, and building it here would be wrong.
func checkSharing(m *image.Manifest) error {
	type user struct {
		what string
		ref  image.ObjRef
	}
	owner := map[user]int32{}
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.State == image.TaskZombie {
			continue
		}
		if len(t.Threads) == 0 || t.Threads[0].TID != t.PID {
			return &ImageError{int(t.PID), "it has no main thread"}
		}
		uses := []user{{"memory", t.MM}, {"signal handlers", t.Sighand}, {ownFiles, t.Threads[0].FDTable}, {ownDirs, t.Threads[0].FS}}
		for _, u := range uses {
			if u.ref == 0 {
				return &ImageError{int(t.PID), "it has no " + u.what}
			}
			if other, ok := owner[u]; ok {
				if u.ref == handedDown(m, t, u.what) {
					continue
				}
				return &ImageError{int(t.PID), fmt.Sprintf("it shares its %s with pid %d, which this version cannot build", u.what, other)}
			}
			owner[u] = t.PID
		}
		for j := range t.Threads {
			th := &t.Threads[j]
			if th.FS != t.Threads[0].FS {
				return &ImageError{int(t.PID), fmt.Sprintf("its thread %d has a working directory of its own, which this version cannot build", th.TID)}
			}
			table := user{ownFiles, th.FDTable}
			if other, ok := owner[table]; th.FDTable == 0 || ok && other != t.PID && th.FDTable != t.Threads[0].FDTable {
				return &ImageError{int(t.PID), fmt.Sprintf("its thread %d has the descriptor table of pid %d, not that of its process, which this version cannot build", th.TID, other)}
			} else if !ok {
				owner[table] = t.PID
			}
			if len(th.Seccomp) > 0 {
				return &ImageError{int(t.PID), fmt.Sprintf("its thread %d has a seccomp filter, which this version cannot install", th.TID)}
			}
		}
	}
	return nil
}

// The names of what a process can share with its parent.
const (
	ownFiles = "descriptor table"
	ownDirs  = "working directory"
)

// handedDown is what the parent of a task in the same tree has of that name, if a child can
// be made that shares it.
func handedDown(m *image.Manifest, t *image.Task, what string) image.ObjRef {
	i := pidNode(m.Tasks, t.PPID)
	if i == seed || len(m.Tasks[i-1].Threads) == 0 {
		return 0
	}
	parent := &m.Tasks[i-1].Threads[0]
	switch what {
	case ownFiles:
		return parent.FDTable
	case ownDirs:
		return parent.FS
	}
	return 0
}

// checkTasks asks whether the state of each task can be given back here.
func checkTasks(m *image.Manifest) error {
	var errs []error
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.State != image.TaskZombie {
			errs = append(errs, task.CheckRestore(t, &m.MMs[t.MM-1]))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &HostError{What: "this machine or this user cannot give the processes back what they had", Err: err}
	}
	return nil
}

// checkMapped checks that every file that is mapped or executed is what it was, or the
// memory that is restored on top of it would lie.
func checkMapped(m *image.Manifest) error {
	seen := map[string]bool{}
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		mm := &m.MMs[t.MM-1]
		var files []*image.MappedFile
		if mm.ExeSegment == 0 {
			files = append(files, &mm.Exe)
		}
		for k := range mm.VMAs {
			if v := &mm.VMAs[k]; v.Kind == image.VMAFilePrivate || v.Kind == image.VMAFileShared {
				files = append(files, &v.File)
			}
		}
		for _, f := range files {
			if seen[f.Path] || f.Path == "" {
				continue
			}
			seen[f.Path] = true
			if err := checkMappedFile(int(t.PID), f); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkMappedFile compares size, modification time and mode. The inode number may differ: a
// copy with the same times (a restored backup, another machine with the same packages) has
// the same content.
func checkMappedFile(pid int, f *image.MappedFile) error {
	var st unix.Stat_t
	if err := unix.Stat(f.Path, &st); err != nil {
		return &FileError{PID: pid, FD: NoFD, Path: f.Path, What: "it was mapped and cannot be found", Remedy: "put the file back", Err: err}
	}
	return compareMapped(pid, f, &st)
}

// compareMapped is checkMappedFile for a file that was looked at.
func compareMapped(pid int, f *image.MappedFile, st *unix.Stat_t) error {
	fail := func(what, remedy string) error {
		return &FileError{PID: pid, FD: NoFD, Path: f.Path, What: what, Remedy: remedy}
	}
	if st.Mode&unix.S_IFMT != f.Mode&unix.S_IFMT {
		return fail("it was mapped and is a file of another kind now", "put the old file back")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // a device has neither size nor time
	}
	switch {
	case st.Size != f.Size:
		return fail(fmt.Sprintf("it was mapped with %d bytes and has %d now", f.Size, st.Size), "put the old file back")
	case st.Mtim.Nano() != f.MTime:
		return fail(fmt.Sprintf("it was mapped and has been changed since: its time is %s, was %s", stamp(st.Mtim.Nano()), stamp(f.MTime)), "put the old file back, with its times (cp -p)")
	case st.Mode != f.Mode:
		return fail(fmt.Sprintf("it was mapped with mode %#o and has %#o now", f.Mode&0o7777, st.Mode&0o7777), fmt.Sprintf("chmod it to %#o", f.Mode&0o7777))
	}
	return nil
}

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

// checkFiles asks the kinds whether they can open their files, each as the user it belongs to.
func (j *job) checkFiles() error {
	return j.eachUser(func(u *fileUser) error {
		return j.inRuns(u, j.unlike(u.files), func(run []image.ObjRef) error {
			warns := make([]string, len(run))
			err := j.atOnce(u, len(run), func(i int) (err error) {
				warns[i], err = j.checkFile(run[i])
				return err
			})
			for _, w := range warns {
				if w != "" {
					j.warn("%s", w)
				}
			}
			return err
		})
	})
}

// unlike leaves out files of which another one says just the same, so that a look at that one tells of both.
func (j *job) unlike(refs []image.ObjRef) (out []image.ObjRef) {
	type opened struct {
		kind, path, rec string
		flags           uint32
		pos             int64
	}
	seen := map[opened]bool{}
	for _, ref := range refs {
		f := &j.m.Files[ref-1]
		key := opened{f.Kind, f.Path, string(f.Rec), f.Flags, f.Pos}
		if seen[key] && j.independent(ref) {
			continue
		}
		seen[key] = true
		out = append(out, ref)
	}
	return out
}

// checkFile asks the kind of one file.
func (j *job) checkFile(ref image.ObjRef) (warn string, err error) {
	rec := &j.m.Files[ref-1]
	k := kind.ByName(rec.Kind)
	if k == nil {
		return "", j.fileError(ref, fmt.Sprintf("this version does not know files of kind %q", rec.Kind), "restore it with the version that took the image", nil)
	}
	c, ok := k.(kind.Checker)
	if !ok {
		return "", nil
	}
	warn, err = c.CheckOpen(rec, j.env)
	if errors.Is(err, os.ErrPermission) && j.mayHelp() { // see openRecord
		err = asUser(&image.Creds{Eff: ^uint64(0)}, func() (err error) {
			warn, err = c.CheckOpen(rec, j.helping())
			return err
		})
	}
	if err != nil {
		return "", j.fileError(ref, "", "", err)
	}
	return warn, nil
}
