package sysv

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of shmctl(2), semctl(2) and msgctl(2), from linux/ipc.h and linux/shm.h.
const (
	IPCCreat  = 0o1000
	IPCExcl   = 0o2000
	IPCRmid   = 0
	IPCSet    = 1
	IPCStat   = 2
	ShmLock   = 11
	ShmUnlock = 12

	ShmHugeTLB   = 0o4000
	ShmNoReserve = 0o10000
	ShmReadOnly  = 0o10000 // of shmat(2)
	ShmExec      = 0o100000
	ShmHugeShift = 26
)

// TakenError says that an id could not be had.
type TakenError struct {
	What string // "shared memory segment"
	ID   int32  // that was wanted
	Got  int32  // the id that the kernel gave instead
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("the id %d of a %s is taken, or blocked by another with the same slot; the kernel gave %d", e.ID, e.What, e.Got)
}

// tries is how often an id is asked for: somebody else may make an object between our two calls, and get it.
const tries = 4

// Make makes an object with an id: it tells the kernel which one is to be next (shm_next_id,
// sem_next_id, msg_next_id in /proc/sys/kernel; it needs CAP_CHECKPOINT_RESTORE), lets get make one and
// looks what came out. name is "shm", "sem" or "msg"; remove removes one with a wrong id.
func Make(name, what string, id int32, get func() (int32, error), remove func(id int32) error) error {
	path := "/proc/sys/kernel/" + name + "_next_id"
	var taken *TakenError
	for range tries {
		if err := os.WriteFile(path, []byte(strconv.Itoa(int(id))), 0); err != nil {
			return fmt.Errorf("ask for the id %d: %w", id, err)
		}
		got, err := get()
		if err != nil {
			return errors.Join(err, os.WriteFile(path, []byte("-1"), 0)) // or a stranger gets it
		}
		if got == id {
			return nil
		}
		if err := remove(got); err != nil {
			return fmt.Errorf("remove %s %d, which has a wrong id: %w", what, got, err)
		}
		taken = &TakenError{what, id, got}
	}
	return taken
}

// Set sets owner and permissions of shared memory ("shm"), a semaphore set ("sem") or a queue ("msg").
func Set(name string, p *Perm) error {
	var b [256]byte // struct ipc64_perm, and what follows it
	if err := ctl(name, p.ID, IPCStat, unsafe.Pointer(&b[0])); err != nil {
		return err
	}
	perm := (*ipcPerm)(unsafe.Pointer(&b[0]))
	perm.UID, perm.GID, perm.Mode = p.UID, p.GID, p.Mode&0o777
	return ctl(name, p.ID, IPCSet, unsafe.Pointer(&b[0]))
}

// Remove is IPC_RMID.
func Remove(name string, id int32) error { return ctl(name, id, IPCRmid, nil) }

// ipcPerm begins struct ipc64_perm of asm-generic/ipcbuf.h.
type ipcPerm struct {
	Key                        int32
	UID, GID, CUID, CGID, Mode uint32
}

// ctl is shmctl(2), semctl(2) or msgctl(2) about a whole object.
func ctl(name string, id int32, cmd int, arg unsafe.Pointer) error {
	var errno unix.Errno
	switch name {
	case "shm":
		_, _, errno = unix.Syscall(unix.SYS_SHMCTL, uintptr(id), uintptr(cmd), uintptr(arg))
	case "sem":
		_, _, errno = unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, uintptr(cmd), uintptr(arg), 0, 0)
	default:
		_, _, errno = unix.Syscall(unix.SYS_MSGCTL, uintptr(id), uintptr(cmd), uintptr(arg))
	}
	if errno != 0 {
		return fmt.Errorf("%sctl of id %d, command %d: %w", name, id, cmd, errno)
	}
	return nil
}

// Lock is SHM_LOCK, or SHM_UNLOCK.
func Lock(id int32, on bool) error {
	cmd := ShmUnlock
	if on {
		cmd = ShmLock
	}
	return ctl("shm", id, cmd, nil)
}

// Goes reports whether segments go as soon as nobody has them attached (kernel.shm_rmid_forced).
func Goes() bool {
	b, err := os.ReadFile("/proc/sys/kernel/shm_rmid_forced")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// Mapped finds the segment that a mapping in /proc/PID/maps with this path and inode number shows. key is
// the one it was made with, which it no longer has if it is marked for removal.
func Mapped(path string, ino uint64, shared, deleted bool) (id, key int32, ok bool) {
	hex, ok := strings.CutPrefix(path, "/SYSV")
	if !ok || len(hex) != 8 || !shared || !deleted || ino > 1<<31-1 {
		return 0, 0, false
	}
	v, err := strconv.ParseUint(hex, 16, 32)
	return int32(ino), int32(uint32(v)), err == nil
}

// Attachment is a segment that this process has attached, with a descriptor of its memory. While it is
// there, so is the segment.
type Attachment struct {
	FD   int // for reading, or for reading and writing
	addr uintptr
}

// Attach attaches a segment of size bytes. It needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
func Attach(id int32, write bool) (*Attachment, error) {
	flags, mode := ShmReadOnly, unix.O_RDONLY
	if write {
		flags, mode = 0, unix.O_RDWR
	}
	addr, _, errno := unix.Syscall(unix.SYS_SHMAT, uintptr(id), 0, uintptr(flags))
	if errno != 0 {
		return nil, fmt.Errorf("shmat of id %d: %w", id, errno)
	}
	a := &Attachment{FD: -1, addr: addr}
	end, err := mappingEnd(addr)
	if err == nil {
		a.FD, err = unix.Open(fmt.Sprintf("/proc/self/map_files/%x-%x", addr, end), mode|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open shared memory %d: %w", id, err), a.Close())
	}
	return a, nil
}

// Close detaches the segment.
func (a *Attachment) Close() error {
	if a.FD >= 0 {
		unix.Close(a.FD)
		a.FD = -1
	}
	if a.addr == 0 {
		return nil
	}
	_, _, errno := unix.Syscall(unix.SYS_SHMDT, a.addr, 0, 0)
	a.addr = 0
	if errno != 0 {
		return fmt.Errorf("shmdt: %w", errno)
	}
	return nil
}

// mappingEnd finds where our mapping that starts at addr ends.
func mappingEnd(addr uintptr) (uint64, error) {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	want := strconv.FormatUint(uint64(addr), 16) + "-"
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, want); ok {
			end, _, _ := strings.Cut(rest, " ")
			return strconv.ParseUint(end, 16, 64)
		}
	}
	return 0, fmt.Errorf("no mapping of ours at %#x", addr)
}
