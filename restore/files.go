package restore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// slot is a descriptor of a process.
type slot struct {
	pid int // or the thread by which the table goes, see holding
	num int
}

// fileUser is one set of filesystem credentials and the files that it opens.
type fileUser struct {
	creds *image.Creds
	files []image.ObjRef
}

// mapKey is a file to be mapped.
type mapKey struct {
	path  string
	write bool // through a shared mapping
}

// planFiles finds out who opens which file: the first thread of the first table that has it.
// Those of a process come together, by their numbers: they are placed in this order.
func (j *job) planFiles() {
	j.holder = map[image.ObjRef]slot{}
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if len(t.Threads) == 0 || t.State == image.TaskZombie {
			continue
		}
		for _, u := range holdings(j.m, t) {
			j.planTable(u, &t.Threads[u.thread].Creds)
		}
	}
	j.planCarried()
}

// planTable is planFiles for one table.
func (j *job) planTable(by holding, creds *image.Creds) {
	for _, fd := range by.fds {
		if _, ok := j.holder[fd.File]; ok {
			continue
		}
		j.holder[fd.File] = slot{by.id, int(fd.Num)}
		if n := len(j.users); n == 0 || !sameAccess(j.users[n-1].creds, creds) {
			j.users = append(j.users, fileUser{creds: creds})
		}
		u := &j.users[len(j.users)-1]
		u.files = append(u.files, fd.File)
	}
}

// planCarried adds the files that wait in the queue of another one: that user opens them, if no
// process has them.
func (j *job) planCarried() {
	for k := range j.users {
		u := &j.users[k]
		for i := 0; i < len(u.files); i++ { // what is added may carry more
			at := j.holder[u.files[i]]
			refs, err := kind.Carried(&j.m.Files[u.files[i]-1])
			if err != nil {
				continue // opening it says so
			}
			for _, ref := range refs {
				if _, ok := j.holder[ref]; ok || ref == 0 || int(ref) > len(j.m.Files) {
					continue
				}
				j.holder[ref] = slot{at.pid, NoFD}
				u.files = append(u.files, ref)
			}
		}
	}
}

// sameAccess reports whether two threads open files alike.
func sameAccess(a, b *image.Creds) bool {
	return a.UID[3] == b.UID[3] && a.GID[3] == b.GID[3] && a.Eff == b.Eff && slices.Equal(a.Groups, b.Groups)
}

// eachUser runs f with the files of each user, on a thread that has his filesystem credentials.
func (j *job) eachUser(f func(u *fileUser) error) error {
	for i := range j.users {
		u := &j.users[i]
		if err := asUser(u.creds, func() error { return f(u) }); err != nil {
			return err
		}
	}
	return nil
}

// mayHelp reports whether a file that its process could not open itself is opened with our
// own credentials: a daemon that has given up its privileges holds such files. Only for
// somebody who could open them anyway.
func (j *job) mayHelp() bool { return j.opt.CallerUID <= 0 }

// openAll makes the shared memory and opens every file.
func (j *job) openAll() error {
	if err := j.makeSegments(); err != nil {
		return err
	}
	if err := j.openMapped(); err != nil {
		return err
	}
	kind.GrowTable(min(len(j.m.Files), j.depot.keep))
	err := j.eachUser(func(u *fileUser) error { return j.openFiles(u, false) })
	if err != nil {
		return err
	}
	for ref, fd := range j.ttys {
		if fd >= 0 {
			continue
		}
		fd, err := j.openFile(ref) // no table has it
		if err != nil {
			return err
		}
		j.ttys[ref] = fd
	}
	if err := j.openPeers(); err != nil {
		return err
	}
	if err := j.openCwds(); err != nil {
		return err
	}
	if err := j.depot.flush(); err != nil {
		return err
	}
	if err := j.closeShared(); err != nil {
		return err
	}
	return j.settleGone()
}

// openFiles opens files of a user, whose credentials the calling thread has, and puts them by: those that
// are about processes, or the others.
func (j *job) openFiles(u *fileUser, late bool) error {
	var refs []image.ObjRef
	for _, ref := range u.files {
		if j.later(ref) == late {
			refs = append(refs, ref)
		}
	}
	return j.inRuns(u, refs, func(run []image.ObjRef) error {
		fds, err := j.openRun(u, run)
		for i, ref := range run {
			if fds[i] < 0 {
				continue
			}
			if err == nil {
				err = j.keepFile(ref, fds[i])
			} else {
				closeFD(fds[i])
			}
		}
		return err
	})
}

// openRun opens some files at the same time. Those that are open already, or not because of the error, are -1.
func (j *job) openRun(u *fileUser, run []image.ObjRef) ([]int, error) {
	fds := slices.Repeat([]int{-1}, len(run))
	err := j.atOnce(u, len(run), func(i int) (err error) {
		if fd, ok := j.ttys[run[i]]; j.depot.holds(run[i]) || ok && fd >= 0 {
			return nil
		}
		fds[i], err = j.openFile(run[i])
		return err
	})
	return fds, err
}

// keepFile puts an open file by, or closes it.
func (j *job) keepFile(ref image.ObjRef, fd int) error {
	if err := j.checkLocks(ref, fd); err != nil {
		closeFD(fd)
		return err
	}
	if _, ok := j.ttys[ref]; ok || j.apart(ref) {
		j.ttys[ref] = fd // the depot may keep others in queues, where these cannot go
		return nil
	}
	return j.depot.put(ref, fd)
}

func (j *job) openFile(ref image.ObjRef) (int, error) {
	rec := &j.m.Files[ref-1]
	k := kind.ByName(rec.Kind)
	if k == nil {
		return -1, j.fileError(ref, fmt.Sprintf("this version does not know files of kind %q", rec.Kind), "restore it with the version that took the image", nil)
	}
	fd, err := j.openRecord(k, rec)
	if err != nil {
		return -1, j.fileError(ref, "", openRemedy(err), err)
	}
	return fd, nil
}

// openRecord opens what a record describes, if need be and allowed with our own credentials.
func (j *job) openRecord(k kind.Kind, rec *image.File) (int, error) {
	fd, err := k.Open(rec, j.env)
	_, late := k.(kind.Later) // the processes have our credentials until the end, and are his own then
	if errors.Is(err, os.ErrPermission) && (late || j.mayHelp()) {
		err = asUser(&image.Creds{Eff: ^uint64(0)}, func() (err error) {
			fd, err = k.Open(rec, j.helping())
			return err
		})
	}
	return fd, err
}

// helping is the Env for what a process could not open itself.
func (j *job) helping() *kind.Env {
	e := *j.env
	e.Helping = true
	return &e
}

func openRemedy(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return "raise the limit of open files (ulimit -Hn) of ckptfs"
	}
	return ""
}

// ownFile is kind.Env.File: a file that is open already, or one about processes that is opened now.
func (j *job) ownFile(ref image.ObjRef) (int, error) {
	if fd, ok := j.ttys[ref]; ok && fd >= 0 {
		return dupFD(fd)
	}
	if !j.depot.holds(ref) {
		if _, ok := j.holder[ref]; !ok || !j.later(ref) {
			return -1, fmt.Errorf("open file %d of the image cannot be had now", ref)
		}
		fd, err := j.openFile(ref)
		if err != nil {
			return -1, err
		}
		if err := j.depot.put(ref, fd); err != nil {
			return -1, err
		}
	}
	if err := j.depot.flush(); err != nil {
		return -1, err
	}
	return j.depot.borrow(ref)
}

func dupFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("restore: F_DUPFD_CLOEXEC: %w", err)
	}
	return n, nil
}

// fileError is an error about an open file, with the place where it was found.
func (j *job) fileError(ref image.ObjRef, what, remedy string, err error) error {
	at, ok := j.holder[ref]
	if !ok {
		at = slot{int(j.m.Tasks[0].PID), NoFD}
	}
	return &FileError{PID: j.processOf(at.pid), FD: at.num, Path: j.m.Files[ref-1].Path, What: what, Remedy: remedy, Err: err}
}

// openMapped opens the files that are mapped or executed. They have been compared with the
// image already; the file that is open now is compared again.
func (j *job) openMapped() error {
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		mm := &j.m.MMs[t.MM-1]
		j.otherNames(t.PID, mm)
		if mm.ExeSegment == 0 {
			if err := j.openMap(int(t.PID), &mm.Exe, false); err != nil {
				return err
			}
		}
		for k := range mm.VMAs {
			v := &mm.VMAs[k]
			if v.Kind != image.VMAFilePrivate && v.Kind != image.VMAFileShared {
				continue
			}
			if err := j.openMap(int(t.PID), &v.File, writes(v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writes reports whether the mapping could write to its file or segment ("mw" says it may be
// made writable), so that this was open for writing.
func writes(v *image.VMA) bool {
	return v.Flags&unix.MAP_SHARED != 0 && (v.Prot&unix.PROT_WRITE != 0 || slices.Contains(v.VMFlags, "mw"))
}

func (j *job) openMap(pid int, f *image.MappedFile, write bool) error {
	if f.Path == "" {
		return &ImageError{pid, "it maps or executes a file without a name"}
	}
	key := mapKey{f.Path, write}
	if _, ok := j.mapped[key]; ok {
		return nil
	}
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd, err := unix.Open(f.Path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return &FileError{PID: pid, FD: NoFD, Path: f.Path, What: "it was mapped and cannot be opened", Remedy: openRemedy(err), Err: err}
	}
	j.mapped[key] = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &FileError{PID: pid, FD: NoFD, Path: f.Path, What: "fstat", Err: err}
	}
	return compareMapped(pid, f, &st)
}

// openOut is kind.Env.Out.
func (j *job) openOut() (int, error) {
	path := j.opt.OutPath
	if path == "" {
		path = os.DevNull
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, fmt.Errorf("open %s for the output of the restored processes: %w", path, err)
	}
	return fd, nil
}

// closeShared closes what the kinds shared while they opened the files.
func (j *job) closeShared() error {
	if j.env == nil {
		return nil // nothing was opened
	}
	var errs []error
	for _, v := range j.env.Shared {
		if c, ok := v.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	j.env.Shared = map[string]any{}
	return errors.Join(errs...)
}

// closeFiles closes every file of ours; the processes have their own descriptors.
func (j *job) closeFiles() {
	if err := j.closeShared(); err != nil { // nothing is left in it unless the restore failed
		j.log("%v", err)
	}
	j.depot.close()
	for _, fd := range j.cwds {
		closeFD(fd)
	}
	for _, fd := range j.ttys {
		closeFD(fd)
	}
	for _, fd := range j.peers {
		closeFD(fd)
	}
	for _, fd := range j.segs {
		closeFD(fd)
	}
	for _, fd := range j.readable {
		closeFD(fd)
	}
	for _, fd := range j.mapped {
		closeFD(fd)
	}
	j.ttys, j.peers, j.cwds, j.segs, j.readable, j.mapped = nil, nil, nil, nil, nil, nil
}
