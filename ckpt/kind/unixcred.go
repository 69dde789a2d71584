package kind

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// What SO_PEERCRED tells is the process that called socketpair(2), connect(2) or listen(2), and its
// effective user, group and groups at that time. So these calls are made in that process.

// equal reports whether two are the same; nil is none.
func (c *unixCred) equal(d *unixCred) bool {
	if c == nil || d == nil {
		return c == d
	}
	return c.PID == d.PID && c.UID == d.UID && c.GID == d.GID && slices.Equal(c.Groups, d.Groups)
}

// maker is the process that stands for the one that made a connection: the same, or one that has
// its id for the time, or if that is taken the first of the tree.
func (w *unixWorld) maker(c *unixCred) int {
	if c == nil {
		return w.first()
	}
	if runs(w.e.Manifest, c.PID) {
		return int(c.PID)
	}
	if pid := w.e.Dead[deadKey(c.PID)]; pid == int(c.PID) {
		return pid
	}
	w.e.Warn("pid %d, which connected unix sockets, is not in the tree and its id is not free: SO_PEERCRED tells %d", c.PID, w.first())
	return w.first()
}

func deadKey(pid int32) string { return fmt.Sprintf("unix pid %d", pid) }

// runs reports whether the image has a process with that id which has not ended.
func runs(m *image.Manifest, pid int32) bool {
	for i := range m.Tasks {
		if t := &m.Tasks[i]; t.PID == pid {
			return t.State != image.TaskZombie
		}
	}
	return false
}

// maxUnixDead bounds the processes that one socket needs and that had ended.
const maxUnixDead = 64

// Dead is Later.Dead: those that have connected it or sent what waits in it, and are in no image.
func (unixSock) Dead(rec *image.File) ([]Dead, error) {
	var r unixRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	var all []Dead
	for _, d := range r.Ended {
		if d.PID <= 0 || len(r.Ended) > maxUnixDead || !endsLike(d.Status) {
			return nil, fmt.Errorf("the image has a unix socket about %d processes that had ended, one of them %d with status %#x", len(r.Ended), d.PID, d.Status)
		}
		all = append(all, Dead{Key: deadKey(d.PID), PID: int(d.PID), Status: d.Status})
	}
	return all, nil
}

// readFrom reads memory of a process.
func readFrom(pid int, at uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: uint64(n)}}, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	if err != nil || got != n {
		return nil, fmt.Errorf("read memory of pid %d: %w", pid, orShort(err))
	}
	return b, nil
}

// fetchFrom duplicates a descriptor of a process.
func fetchFrom(p Process, num int) (int, error) {
	pidfd, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open of %d: %w", p.PID(), err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, num, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of descriptor %d of pid %d: %w", num, p.PID(), err)
	}
	return fd, nil
}

// asCred runs f while a process has the effective user, group and groups of c. A stub has ours.
func asCred(p Process, c *unixCred, f func() error) error {
	own, err := os.Getgroups()
	if err != nil {
		return fmt.Errorf("getgroups: %w", err)
	}
	uid, gid := os.Geteuid(), os.Getegid()
	groups := make([]uint32, len(own))
	for i, g := range own {
		groups[i] = uint32(g)
	}
	if c == nil || c.UID == uint32(uid) && c.GID == uint32(gid) && slices.Equal(slices.Sorted(slices.Values(groups)), slices.Sorted(slices.Values(c.Groups))) {
		return f()
	}
	if err := setCred(p, c.UID, c.GID, c.Groups); err != nil {
		return fmt.Errorf("let pid %d be uid %d and gid %d for its connection: %w", p.PID(), c.UID, c.GID, err)
	}
	err = f()
	keep := uint64(^uint32(0))
	if _, berr := p.Syscall(unix.SYS_SETRESUID, keep, uint64(uid), keep); berr != nil && err == nil { // first: it gives the capabilities back
		err = fmt.Errorf("let pid %d be uid %d again: %w", p.PID(), uid, berr)
	}
	if berr := setCred(p, uint32(uid), uint32(gid), groups); berr != nil && err == nil {
		err = fmt.Errorf("let pid %d be uid %d again: %w", p.PID(), uid, berr)
	}
	return err
}

// setCred sets the effective user last: with it the right to set the others may go.
func setCred(p Process, uid, gid uint32, groups []uint32) error {
	const most = 65535 // more do not fit beside the stub
	if len(groups) > most {
		return fmt.Errorf("it has %d groups, and this version can give it %d", len(groups), most)
	}
	b := make([]byte, 0, 4*len(groups)+4)
	for _, g := range groups {
		b = binary.NativeEndian.AppendUint32(b, g)
	}
	at, err := p.Put(append(b, 0, 0, 0, 0))
	if err != nil {
		return err
	}
	if _, err := p.Syscall(unix.SYS_SETGROUPS, uint64(len(groups)), at); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	keep := uint64(^uint32(0))
	if _, err := p.Syscall(unix.SYS_SETRESGID, keep, uint64(gid), keep); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if _, err := p.Syscall(unix.SYS_SETRESUID, keep, uint64(uid), keep); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}
