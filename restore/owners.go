package restore

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Types of owners: F_OWNER_TID and F_OWNER_PGRP of fcntl(2). The third is a process.
const (
	ownerTID  = 0
	ownerPGRP = 2
)

// writeOwners sets who gets SIGIO for the files that p is the first to have (F_SETOWN_EX and
// F_SETSIG of fcntl(2)). The kernel remembers the user ids of who sets it, so the process
// does that itself, when it has its own.
func (j *job) writeOwners(p *proc) error {
	return j.eachTable(p, func(u holding) error { return j.ownTable(p, u) })
}

func (j *job) ownTable(p *proc, u holding) error {
	for _, fd := range u.fds {
		f := &j.m.Files[fd.File-1]
		if j.holder[fd.File] != (slot{u.id, int(fd.Num)}) || f.Owner == (image.FOwner{}) {
			continue
		}
		_, err := p.rem.Syscall(unix.SYS_FCNTL, uint64(fd.Num), unix.F_SETSIG, uint64(f.Owner.Signal))
		if err == nil && f.Owner.PID != 0 {
			err = j.writeOwner(p, u, int(fd.Num), f)
		}
		if err != nil {
			return j.fileError(fd.File, "set who gets its SIGIO", "", err)
		}
	}
	return nil
}

// writeOwner sets the owner of one file. One that does not exist any more is a warning: nobody
// gets the signal then, and surely not another process that has the number now.
func (j *job) writeOwner(p *proc, u holding, num int, f *image.File) error {
	gone := !j.ownerStays(f)
	var err error
	if !gone {
		ex := le.AppendUint32(le.AppendUint32(nil, uint32(f.Owner.Type)), uint32(f.Owner.PID))
		if j.ownedByOther(p, u, f) {
			err = j.ownAs(u.id, num, f.OwnerBy, ex)
		} else {
			var at uint64
			if at, err = j.put(p, 0, ex); err == nil {
				_, err = p.rem.Syscall(unix.SYS_FCNTL, uint64(num), unix.F_SETOWN_EX, at)
			}
		}
	}
	if !gone && !errors.Is(err, unix.ESRCH) {
		return err
	}
	j.warn("pid %d fd %d: the process or group %d outside the tree that got its SIGIO does not exist any more", p.pid, num, f.Owner.PID)
	if len(f.Locks) == 0 {
		return nil
	}
	_, err = p.rem.Syscall(unix.SYS_FCNTL, uint64(num), unix.F_SETOWN, 0) // a lease has named the process that took it
	return err
}

// ownerStays reports whether the owner of a file is what it was: of the tree, or a process outside of
// it that has lived on since.
func (j *job) ownerStays(f *image.File) bool {
	if f.OwnerBy == nil || j.ownerInTree(f.Owner) { // images of before did not tell more
		return true
	}
	boot, err := quickread.File("/proc/sys/kernel/random/boot_id")
	if err != nil || f.OwnerStart == 0 || strings.TrimSpace(string(boot)) != j.m.Host.BootID {
		return false
	}
	st, err := readStat(int(f.Owner.PID))
	return err == nil && st.StartTime == f.OwnerStart
}

func (j *job) ownerInTree(o image.FOwner) bool {
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		switch o.Type {
		case ownerPGRP:
			if t.PGID == o.PID {
				return true
			}
		case ownerTID:
			for k := range t.Threads {
				if t.Threads[k].TID == o.PID {
					return true
				}
			}
		default:
			if t.PID == o.PID {
				return true
			}
		}
	}
	return false
}

// ownedByOther reports whether the owner was set by somebody with other user ids than p has:
// the process has changed its own since. Only a restore by root may set it so.
func (j *job) ownedByOther(p *proc, u holding, f *image.File) bool {
	c := &p.task.Threads[u.thread].Creds
	return len(f.OwnerBy) == 2 && (f.OwnerBy[0] != c.UID[0] || f.OwnerBy[1] != c.UID[1]) && j.opt.CallerUID <= 0
}

// ownAs sets the owner of a file of a process on a thread that has these real and effective user
// ids. The thread ends with that.
func (j *job) ownAs(id, num int, ids []uint32, ex []byte) error {
	pidfd, err := j.openPidfd(id)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, num, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer unix.Close(fd)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(ids[0]), uintptr(ids[1]), ^uintptr(0)); errno != 0 {
				return fmt.Errorf("setresuid to %d and %d: %w", ids[0], ids[1], errno)
			}
			_, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETOWN_EX, uintptr(unsafe.Pointer(&ex[0])))
			if errno != 0 {
				return errno
			}
			return nil
		}()
	}()
	return <-done
}
