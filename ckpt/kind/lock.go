package kind

import (
	"slices"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// Locks belong to files of every kind, so the restore takes them again for all kinds alike. What a
// kind has to do with them is to refuse those that cannot be taken again, see held.

// HeldLock is a lock that was found.
type HeldLock struct {
	procfs.Lock
	Holder int32 // the process in whose fdinfo it stands
}

// AddLocks adds the locks of an fdinfo of f in a process. The kernel shows there what was taken by
// way of this description: flock(2), F_OFD_SETLK and leases in every process that has it, F_SETLK
// only in the one that holds it. What it shows again for another descriptor is added once. A
// line that cannot be read becomes a lock without a type, which is refused.
func (f *Found) AddLocks(pid int32, info *procfs.FDInfo) {
	for _, line := range info.Locks {
		l, ok := procfs.ParseLock(line)
		if !ok {
			l = procfs.Lock{}
		}
		h := HeldLock{l, pid}
		if !slices.ContainsFunc(f.Locks, func(g HeldLock) bool { return g.Lock == l && (l.Type != "POSIX" || g.Holder == pid) }) {
			f.Locks = append(f.Locks, h)
		}
	}
}

// lockTypes are the locks that a restore can take again.
var lockTypes = map[string]image.LockType{
	"FLOCK": image.LockFlock, "POSIX": image.LockPOSIX, "OFDLCK": image.LockOFD, "LEASE": image.LockLease,
}

// Records turns the locks of f into those of an image. taker returns a process of the tree that can
// take a lock again: by if that has the descriptor table of holder, or any that has f if
// holder is 0, else another one.
func (f *Found) Records(taker func(f *Found, by, holder int32) int32) []image.Lock {
	var all []image.Lock
	for _, l := range f.Locks {
		r := image.Lock{Type: lockTypes[l.Type], Write: l.Mode == "WRITE", Start: l.Start, End: l.End}
		holder := int32(0)
		if r.Type == image.LockPOSIX {
			holder = l.Holder
		}
		r.PID = taker(f, int32(l.PID), holder)
		all = append(all, r)
	}
	return all
}

// ReadOwner reads who gets the SIGIO of our descriptor fd (F_GETOWN_EX, F_GETSIG of fcntl(2)); nobody
// is the zero value. O_PATH descriptors answer EBADF and have none.
func ReadOwner(fd int) image.FOwner {
	var ex struct{ typ, pid int32 }
	_, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETOWN_EX, uintptr(unsafe.Pointer(&ex)))
	sig, err := unix.FcntlInt(uintptr(fd), unix.F_GETSIG, 0)
	if errno != 0 || err != nil || ex.pid == 0 && sig == 0 {
		return image.FOwner{}
	}
	return image.FOwner{Type: ex.typ, PID: ex.pid, Signal: int32(sig)}
}

// getOwnerUIDs is F_GETOWNER_UIDS of linux/fcntl.h.
const getOwnerUIDs = 17

// ReadOwnerBy reads the real and effective uid of who named the owner: they decide what it may
// signal. A kernel without CONFIG_CHECKPOINT_RESTORE does not tell, which is nil.
func ReadOwnerBy(fd int) []uint32 {
	var ids [2]uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), getOwnerUIDs, uintptr(unsafe.Pointer(&ids))); errno != 0 {
		return nil
	}
	return ids[:]
}
