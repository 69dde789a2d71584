package restore

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// Locks and leases are taken again by the processes themselves: those of F_SETLK belong to a process,
// and of the others the kernel remembers who took them. That is done when every process has
// its files, since whatever closes a descriptor of a file drops the process's locks of it, and before
// credentials, since a lease may want CAP_LEASE. Nobody runs yet, so that a lock which somebody
// else holds meanwhile still ends the restore without a trace.

// checkLockers checks that who is to take a lock has the file open.
func (j *job) checkLockers() error {
	for i := range j.m.Files {
		for _, l := range j.m.Files[i].Locks {
			if _, ok := j.lockSlot(image.ObjRef(i+1), l.PID); !ok {
				return &ImageError{int(l.PID), fmt.Sprintf("it holds a lock of %s and does not have that file open", j.m.Files[i].Path)}
			}
		}
	}
	return nil
}

// lockSlot returns the lowest descriptor of a file in a process of the tree, or in the own table of a thread.
func (j *job) lockSlot(ref image.ObjRef, pid int32) (num int, ok bool) {
	fds := j.tableOf(pid)
	at := slices.IndexFunc(fds, func(fd image.FD) bool { return fd.File == ref })
	if at < 0 {
		return -1, false
	}
	return int(fds[at].Num), true
}

// checkLocks fails if somebody else holds what excludes the locks of a file, which is open here as fd
// and holds none yet. A lease cannot be asked for; takeLocks finds out.
func (j *job) checkLocks(ref image.ObjRef, fd int) error {
	for _, l := range j.m.Files[ref-1].Locks {
		if l.Type == image.LockLease {
			continue // not in the way of anything yet
		}
		who, err := lockedBy(fd, &l, j.lockers)
		if err != nil {
			return j.lockError(ref, &l, "", err)
		}
		if len(who) > 0 {
			return j.lockError(ref, &l, who, nil)
		}
	}
	return nil
}

// stillLocked names a file whose lock a process of the image that was never ended holds still.
func (j *job) stillLocked(pid int) string {
	for i := range j.m.Files {
		f := &j.m.Files[i]
		for _, l := range f.Locks {
			if num, ok := j.lockSlot(image.ObjRef(i+1), l.PID); ok && int(l.PID) == pid && len(heldLocks(pid, strconv.Itoa(num))) > 0 {
				return f.Path
			}
		}
	}
	return ""
}

// verifyLocks compares the locks of a table with the image, as the kernel shows them: what closes a
// descriptor of a file drops locks of it.
func (j *job) verifyLocks(u holding) error {
	done := map[image.ObjRef]bool{}
	for _, fd := range u.fds {
		f := &j.m.Files[fd.File-1]
		if len(f.Locks) == 0 || done[fd.File] {
			continue
		}
		done[fd.File] = true
		held := heldLocks(u.id, strconv.Itoa(int(fd.Num)))
		for i := range f.Locks {
			l := &f.Locks[i]
			if l.PID == int32(u.id) && !slices.ContainsFunc(held, func(h procfs.Lock) bool { return sameLock(l, &h) }) {
				return fmt.Errorf("descriptor %d does not hold %s any more", fd.Num, lockText(l))
			}
		}
	}
	return nil
}

// sameLock compares a lock with what the kernel shows of one.
func sameLock(l *image.Lock, h *procfs.Lock) bool {
	name := map[image.LockType]string{image.LockFlock: "FLOCK", image.LockPOSIX: "POSIX", image.LockOFD: "OFDLCK", image.LockLease: "LEASE"}[l.Type]
	if l.Type == image.LockLease {
		return h.Type == name // somebody may have begun to break it by now
	}
	return h.Type == name && (h.Mode == "WRITE") == l.Write && h.Start == l.Start && h.End == l.End
}

// takeLocks takes the locks and leases that p took.
func (j *job) takeLocks(p *proc) error {
	return j.eachTable(p, func(u holding) error { return j.lockTable(p, u) })
}

// lockTable takes those that stand in one of its tables: those of F_SETLK belong to the table.
func (j *job) lockTable(p *proc, u holding) error {
	done := map[image.ObjRef]bool{}
	for _, fd := range u.fds {
		if done[fd.File] {
			continue
		}
		done[fd.File] = true
		for _, l := range j.m.Files[fd.File-1].Locks {
			if l.PID != int32(u.id) {
				continue
			}
			if err := j.takeLock(p, u, fd, &l); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeLock takes one lock. It never waits.
func (j *job) takeLock(p *proc, u holding, fd image.FD, l *image.Lock) error {
	call := func(nr uintptr, args ...uint64) error {
		_, err := p.rem.Syscall(nr, append([]uint64{uint64(fd.Num)}, args...)...)
		return err
	}
	var err error
	switch l.Type {
	case image.LockFlock:
		how := unix.LOCK_SH
		if l.Write {
			how = unix.LOCK_EX
		}
		err = call(unix.SYS_FLOCK, uint64(how|unix.LOCK_NB))
	case image.LockLease:
		if err = call(unix.SYS_FCNTL, unix.F_SETLEASE, uint64(lockMode(l))); err == nil && j.m.Files[fd.File-1].Owner.PID == 0 {
			err = call(unix.SYS_FCNTL, unix.F_SETOWN, 0) // the lease names one
		}
	default:
		cmd := unix.F_SETLK
		if l.Type == image.LockOFD {
			cmd = unix.F_OFD_SETLK
		}
		var at uint64
		if at, err = j.put(p, 0, flockBytes(l)); err == nil {
			err = call(unix.SYS_FCNTL, uint64(cmd), at)
		}
	}
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
		return j.lockError(fd.File, l, "", err)
	case l.Type == image.LockLease && errors.Is(err, unix.EACCES):
		return j.lockError(fd.File, l, "", fmt.Errorf("%w; the file is another user's, and ckptfs has no CAP_LEASE", err))
	}
	return j.lockError(fd.File, l, j.whoLocks(u, fd, l), nil)
}

// whoLocks names who was in the way of a lock.
func (j *job) whoLocks(u holding, fd image.FD, l *image.Lock) string {
	pidfd, err := j.openPidfd(u.id)
	if err == nil {
		defer unix.Close(pidfd)
		var own int
		if own, err = unix.PidfdGetfd(pidfd, int(fd.Num), 0); err == nil {
			defer unix.Close(own)
			var who string
			if who, err = lockedBy(own, l, findLockers); err == nil && who != "" {
				return who
			}
		}
	}
	if err != nil {
		j.log("look for the holder of a lock: %v", err)
	}
	return "another process, which cannot be seen from here,"
}

// lockError is the error about a lock that cannot be taken: who, if not "", is in the way.
func (j *job) lockError(ref image.ObjRef, l *image.Lock, who string, err error) error {
	num, _ := j.lockSlot(ref, l.PID)
	e := &FileError{PID: j.processOf(int(l.PID)), FD: num, Path: j.m.Files[ref-1].Path, Err: err,
		What: fmt.Sprintf("it held %s, which cannot be taken again", lockText(l))}
	switch {
	case who == "":
	case l.Type == image.LockLease:
		e.What += ": " + who + " has the file open"
		e.Remedy = "end that process, or let it close the file, and restore again"
	default:
		e.What += ": " + who + " holds a lock that excludes it"
		e.Remedy = "end that process, or wait until it releases its lock, and restore again"
	}
	return e
}

// lockText names a lock.
func lockText(l *image.Lock) string {
	mode := "a shared"
	if l.Write {
		mode = "an exclusive"
	}
	span := fmt.Sprintf(" on bytes %d to %d", l.Start, l.End)
	if l.End == math.MaxInt64 {
		span = fmt.Sprintf(" from byte %d on", l.Start)
	}
	switch l.Type {
	case image.LockFlock:
		return mode + " flock(2) lock"
	case image.LockPOSIX:
		return mode + " lock of F_SETLK" + span
	case image.LockOFD:
		return mode + " lock of F_OFD_SETLK" + span
	}
	return mode + " lease"
}

// lockMode is l_type of struct flock.
func lockMode(l *image.Lock) int {
	if l.Write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

// lockLen is l_len of struct flock: 0 reaches to the end of the file.
func lockLen(l *image.Lock) int64 {
	if l.End == math.MaxInt64 {
		return 0
	}
	return l.End - l.Start + 1
}

// flockBytes is struct flock of fcntl(2).
func flockBytes(l *image.Lock) []byte {
	b := make([]byte, 32)
	le.PutUint16(b, uint16(lockMode(l)))
	le.PutUint64(b[8:], uint64(l.Start))
	le.PutUint64(b[16:], uint64(lockLen(l)))
	return b
}
