package restore

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// asMaker runs f in the process that made an object of System V, which the kernel writes down. If it is not there
// any more, a process stands for it that has its id, if that is free.
func (j *job) asMaker(pid int, what string, f func(p *proc) error) error {
	if p := j.member(pid); p != nil {
		return f(p)
	}
	want := wantedPIDs(j.m)
	spare, err := newSpares(want)
	if err != nil {
		return err
	}
	p, err := j.standIn(pid, want, spare)
	if err != nil {
		return err
	}
	if p.pid != pid {
		j.warn("%s: pid %d, which made it or used it last, cannot be had any more; it is %d now", what, pid, p.pid)
	}
	err = f(p)
	if eerr := j.endZombie(p, &image.Task{PID: int32(p.pid)}); err == nil && eerr != nil {
		err = fmt.Errorf("end process %d, which stood for one that had ended: %w", p.pid, eerr)
	}
	return err
}

// makeError adds what to do to the error of making an object of System V.
func makeError(err error, limits string) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return &HostError{What: "the kernel does not let us choose its id", Err: err, Remedy: "restore needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and /proc/sys must be writable: run it as root"}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return &HostError{What: "the limits of this machine do not allow it", Err: err, Remedy: "raise " + limits}
	}
	return err
}

// member returns the process of the tree with that id, if it is not a zombie.
func (j *job) member(pid int) *proc {
	for _, p := range j.alive() {
		if p.pid == pid {
			return p
		}
	}
	return nil
}

// withIDs runs f while a stub has these effective ids, with all its capabilities: it is the creator of what it makes.
func (j *job) withIDs(p *proc, uid, gid uint32, f func() error) error {
	own, ownGID := uint32(os.Geteuid()), uint32(os.Getegid())
	if uid == own && gid == ownGID {
		return f()
	}
	caps, err := capData()
	if err != nil {
		return err
	}
	keep := ^uint64(0)
	err = p.batch(func(b *ptrace.Batch) {
		hdr := le.AppendUint32(le.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3), 0)
		b.Call(unix.SYS_SETRESGID, keep, uint64(gid), keep).Label(fmt.Sprintf("take the effective gid %d", gid))
		b.Call(unix.SYS_SETRESUID, keep, uint64(uid), keep).Label(fmt.Sprintf("take the effective uid %d", uid))
		b.Call(unix.SYS_CAPSET, b.Put(hdr).Addr(), b.Put(caps).Addr()).Label("keep the capabilities")
	})
	if err == nil {
		err = f()
	}
	return errors.Join(err, p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_SETRESUID, keep, uint64(own), keep).Label("give the effective uid back")
		b.Call(unix.SYS_SETRESGID, keep, uint64(ownGID), keep).Label("give the effective gid back")
	}))
}

// settleSysV gives the objects what they must not have before, and those that were there the
// content of the image. All processes have attached theirs.
func (j *job) settleSysV() error {
	for i := range j.m.Segments {
		ref := image.ObjRef(i + 1)
		s := j.sysv[ref]
		if s == nil {
			continue
		}
		v := j.m.Segments[i].SysV
		if err := j.settleShm(ref, v, s); err != nil {
			return fmt.Errorf("restore: %s: %w", sysvName(v), err)
		}
	}
	return nil
}

func (j *job) settleShm(ref image.ObjRef, v *image.SysVShm, s *sysvSegment) error {
	if s.there {
		if err := j.refill(ref, v, s); err != nil {
			return err
		}
	}
	perm := sysv.Perm{ID: v.ID, UID: v.UID, GID: v.GID, Mode: v.Mode}
	if err := sysv.Set("shm", &perm); err != nil {
		return err
	}
	if v.Locked || s.there {
		if err := sysv.Lock(v.ID, v.Locked); err != nil {
			return err
		}
	}
	if v.Dest {
		if err := sysv.Remove("shm", v.ID); err != nil {
			return err
		}
	}
	if err := s.at.Close(); err != nil {
		return err
	}
	return j.touchLast(v)
}

// refill replaces the content of a segment that was there before.
func (j *job) refill(ref image.ObjRef, v *image.SysVShm, s *sysvSegment) error {
	all, err := sysv.ReadShm()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(x sysv.Shm) bool { return sameSegment(v, &x) })
	if i < 0 {
		return errors.New("it has been removed or changed just now; restore again")
	}
	if want := attachments(j.m, ref) + 1; all[i].Attach != want { // ours too
		return attachedError(v, all[i].Attach-min(want, all[i].Attach))
	}
	if err := unix.Fallocate(s.at.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(wholeLen(&j.m.Segments[ref-1]))); err != nil {
		return fmt.Errorf("empty it: %w", err)
	}
	return j.fillSysV(ref, s)
}

// touchLast makes the process that attached or detached a segment last the one that does it now.
func (j *job) touchLast(v *image.SysVShm) error {
	p := j.member(int(v.LPID))
	if p == nil {
		return nil
	}
	at, err := p.call("attach SysV shared memory once more", unix.SYS_SHMAT, uint64(v.ID), 0, sysv.ShmReadOnly)
	if err != nil {
		return err
	}
	_, err = p.call("detach SysV shared memory again", unix.SYS_SHMDT, at)
	return err
}

// dropSysV removes what a failed restore has made. Its processes are dead.
func (j *job) dropSysV() {
	for ref, s := range j.sysv {
		if v := j.m.Segments[ref-1].SysV; s.made {
			if err := sysv.Remove("shm", v.ID); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
				j.log("giving up: %v", err)
			}
		}
	}
}

// closeSysV lets go of the segments.
func (j *job) closeSysV() {
	for _, s := range j.sysv {
		if s.at == nil {
			continue
		}
		if err := s.at.Close(); err != nil {
			j.log("%v", err)
		}
	}
}

// exceedsSysV names the first thing of the objects of System V that a user with this uid and these groups
// could not have made, or "".
func exceedsSysV(m *image.Manifest, uid uint32, groups []uint32) string {
	for i := range m.Segments {
		seg := &m.Segments[i]
		v := seg.SysV
		switch {
		case v == nil:
		case v.UID != uid || v.CUID != uid:
			return fmt.Sprintf("%s belongs to uid %d and was made by uid %d", sysvName(v), v.UID, v.CUID)
		case !slices.Contains(groups, v.GID) || !slices.Contains(groups, v.CGID):
			return fmt.Sprintf("%s belongs to gid %d and was made with gid %d", sysvName(v), v.GID, v.CGID)
		case v.Locked || seg.Huge != 0:
			return sysvName(v) + " is locked or has huge pages"
		}
	}
	return ""
}

// mapsSysV reports whether a process has a segment attached.
func mapsSysV(pid int, id int32) bool {
	text, err := os.ReadFile(procPath(pid, "maps"))
	if err != nil {
		return false
	}
	maps, err := procfs.ParseMaps(text)
	return err == nil && slices.ContainsFunc(maps, func(m procfs.Mapping) bool { return showsSysV(&m, id) })
}

func showsSysV(m *procfs.Mapping, id int32) bool {
	got, _, ok := sysv.Mapped(m.Path, m.Ino, m.Shared, m.Deleted)
	return ok && got == id
}
