package kind

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// pidFD is a pidfd_open(2), of a process or with PIDFD_THREAD of a thread. One of a process of
// the tree, a zombie too, is opened again when that is there. One whose process was reaped tells
// of nobody for ever, except how that ended (PIDFD_GET_INFO): it is opened of a process which
// is made for that and ends likewise. One of a process outside the tree is refused, or by the policy
// pidfd=reopen opened of that process if it still runs, and else counts as reaped. Its inode number is another one after a restore.
type pidFD struct{}

type pidFDRec struct {
	PID    int32  `cbor:"1,keyasint,omitempty"` // process or thread; 0: it was reaped
	Ino    uint64 `cbor:"2,keyasint,omitempty"` // with PID 0: those of one process have the same
	Status uint32 `cbor:"3,keyasint,omitempty"` // with PID 0: its wait status
	Start  uint64 `cbor:"4,keyasint,omitempty"` // of a process outside the tree: when it started, in clock ticks after boot
	Boot   string `cbor:"5,keyasint,omitempty"` // … and after which boot
}

const (
	pidfdThread   = unix.O_EXCL // PIDFD_THREAD of linux/pidfd.h, which F_GETFL shows
	pidfdGetInfo  = 0xc040ff0b  // PIDFD_GET_INFO with the first 64 bytes of struct pidfd_info
	pidfdInfoExit = 1 << 3      // PIDFD_INFO_EXIT
)

// pidfdInfo is struct pidfd_info, as far as PIDFD_INFO_SIZE_VER0.
type pidfdInfo struct {
	mask     uint64
	_        uint64
	_        [11]uint32
	exitCode int32
}

func (pidFD) Name() string { return "pidfd" }

func (pidFD) Match(f *Found) bool {
	return f.Link == "anon_inode:[pidfd]" || strings.HasPrefix(f.Link, "pidfd:[")
}

// pidfdTarget reads whom a pidfd is of: -1 if that was reaped, 0 if its id cannot be seen from here.
func pidfdTarget(f *Found) (int, error) {
	for _, line := range f.Info.Other {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("its fdinfo tells no pid")
}

func (pidFD) Check(f *Found, s *Scene) []image.Finding {
	const closeIt = "close it before the checkpoint"
	all := held(f, s)
	pid, err := pidfdTarget(f)
	switch {
	case err != nil:
		all = append(all, f.refuse(err.Error(), closeIt))
	case pid == 0:
		all = append(all, f.refuse("it is of a process in another pid namespace", closeIt))
	case pid > 0 && !s.member(pid) && s.Policy.Get("pidfd") == "reopen":
		all = append(all, f.lose(fmt.Sprintf("it is of %s, which is outside the tree: if that has ended when it is restored, it tells of a process that was killed (policy pidfd=reopen)", processName(pid)),
			"checkpoint a tree that holds that process too"))
	case pid > 0 && !s.member(pid):
		all = append(all, f.refuse(fmt.Sprintf("it is of %s, which is outside the tree and may be gone when it is restored", processName(pid)),
			"checkpoint a tree that holds that process too, "+closeIt+", or choose --policy pidfd=reopen"))
	}
	if f.Flags&^(pidfdThread|unix.O_NONBLOCK|unix.O_ACCMODE|meaningless) != 0 {
		all = append(all, f.refuse(fmt.Sprintf("it has status flags %#o, which this version does not know", f.Flags), closeIt))
	}
	if n, err := unix.Flistxattr(f.FD, nil); err == nil && n > 0 {
		all = append(all, f.refuse("it has extended attributes, which are not kept", "remove them (fremovexattr)"))
	}
	return all
}

// processName names a process outside the tree.
func processName(pid int) string {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("pid %d (%s)", pid, strings.TrimSpace(string(b)))
}

func (pidFD) Dump(f *Found, s *Scene, rec *image.File) error {
	pid, err := pidfdTarget(f)
	if err != nil || pid == 0 {
		return fmt.Errorf("%s: its process cannot be seen from here: %w", f.Link, err)
	}
	if pid > 0 && !s.member(pid) {
		boot, start, err := lifeOf(pid)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Link, err)
		}
		return encodeRec(rec, &pidFDRec{PID: int32(pid), Start: start, Boot: boot})
	}
	if pid > 0 {
		return encodeRec(rec, &pidFDRec{PID: int32(pid)})
	}
	r := pidFDRec{Ino: f.Stat.Ino}
	info := pidfdInfo{mask: pidfdInfoExit}
	// Before Linux 6.15 this is ESRCH: nobody can ask how it ended.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.FD), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno == 0 && info.mask&pidfdInfoExit != 0 {
		r.Status = uint32(info.exitCode)
	}
	return encodeRec(rec, &r)
}

// Dead is Later.Dead.
func (pidFD) Dead(rec *image.File) ([]Dead, error) {
	var r pidFDRec
	if err := decodeRec(rec, &r); err != nil || r.PID != 0 && !r.outside() || r.outside() && r.lives() {
		return nil, err
	}
	if r.outside() {
		return []Dead{{Key: r.key(), Status: uint32(unix.SIGKILL)}}, nil
	}
	if !endsLike(r.Status) {
		return nil, fmt.Errorf("pidfd: no process can end with the wait status %#x of the image", r.Status)
	}
	return []Dead{{Key: r.key(), Status: r.Status}}, nil
}

// outside reports whether it is of a process outside the tree.
func (r *pidFDRec) outside() bool { return r.Boot != "" }

// key is what Dead calls the process that is made for it.
func (r *pidFDRec) key() string {
	if r.outside() {
		return fmt.Sprintf("pidfd of %d, started at %d", r.PID, r.Start)
	}
	return fmt.Sprintf("pidfd %d", r.Ino)
}

// lives reports whether the process outside still is the same.
func (r *pidFDRec) lives() bool {
	boot, start, err := lifeOf(int(r.PID))
	return err == nil && boot == r.Boot && start == r.Start
}

// lifeOf tells a process from all others that have its number at other times.
func lifeOf(pid int) (boot string, start uint64, err error) {
	b, err := quickread.File("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	boot = strings.TrimSpace(string(b))
	if b, err = quickread.File(fmt.Sprintf("/proc/%d/stat", pid)); err != nil {
		return "", 0, err
	}
	st, err := procfs.ParseStat(b)
	if err != nil {
		return "", 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	if st.State == 'X' {
		return "", 0, fmt.Errorf("pid %d: %w", pid, unix.ESRCH)
	}
	return boot, st.StartTime, nil
}

// endsLike reports whether a wait status is that of a process that ended by exit or by a signal
// that ends one.
func endsLike(status uint32) bool {
	if ws := unix.WaitStatus(status); status > 0xffff || !ws.Signaled() {
		return status <= 0xffff && ws.Exited()
	}
	switch sig := unix.WaitStatus(status).Signal(); sig {
	case unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return false
	default:
		return sig >= 1 && sig <= 64 && status>>8 == 0
	}
}

func (pidFD) Open(rec *image.File, e *Env) (int, error) {
	var r pidFDRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	pid, gone := int(r.PID), false
	switch {
	case r.outside():
		if e.Dead[r.key()] > 0 {
			pid, gone = e.Dead[r.key()], true
			e.Warn("%s: pid %d, which was outside the tree, runs no more: the pidfd tells of a process that was killed", rec.Path, r.PID)
		}
	case pid == 0:
		pid = e.Dead[r.key()]
	case !holds(e.Manifest, pid):
		pid = 0
	}
	if pid <= 0 {
		return -1, fmt.Errorf("pidfd: process %d is not in the image", r.PID)
	}
	fd, err := unix.PidfdOpen(pid, int(rec.Flags&(pidfdThread|unix.O_NONBLOCK)))
	if err != nil {
		return -1, fmt.Errorf("pidfd_open of %d: %w", pid, err)
	}
	if r.outside() && !gone && !r.lives() {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("pidfd: process %d, which is outside the tree, has ended just now; try again", pid)
	}
	if fd, err = finished(fd, rec.Flags, 0, 0); err != nil {
		return -1, fmt.Errorf("pidfd: %w", err)
	}
	return fd, nil
}

// CheckOpen is Checker.CheckOpen: whether the image has the process.
func (pidFD) CheckOpen(rec *image.File, e *Env) (string, error) {
	var r pidFDRec
	if err := decodeRec(rec, &r); err != nil {
		return "", err
	}
	if r.PID != 0 && !r.outside() && !holds(e.Manifest, int(r.PID)) {
		return "", fmt.Errorf("pidfd: process %d is not in the image", r.PID)
	}
	return "", nil
}

// holds reports whether the image has a process or thread with that id.
func holds(m *image.Manifest, id int) bool {
	for i := range m.Tasks {
		if int(m.Tasks[i].PID) == id {
			return true
		}
		for k := range m.Tasks[i].Threads {
			if int(m.Tasks[i].Threads[k].TID) == id {
				return true
			}
		}
	}
	return false
}
