package restore

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// A table that uses every number up to the hard limit cannot get its last file over a
// channel: that has a number itself, and what arrives needs a free one. But the supervisor of a
// process with a seccomp(2) filter can put a file into its table (SECCOMP_IOCTL_NOTIF_ADDFD of
// seccomp_unotify(2)). A filter stays for life, so it is a helper that has it: a child which
// shares the table, and the memory that calls are made from, and is killed when it has done this.

// injector is such a helper.
type injector struct {
	p        *proc
	listener int // our descriptor of the filter's listener
}

// injectCall is the system call that the filter hands to us; nothing else uses it here.
const injectCall = unix.SYS_SYSINFO

// struct seccomp_notif and struct seccomp_notif_addfd of linux/seccomp.h.
type (
	seccompNotif struct {
		ID    uint64
		PID   uint32
		Flags uint32
		Data  [64]byte
	}
	seccompAddFD struct {
		ID       uint64
		Flags    uint32
		SrcFD    uint32
		NewFD    uint32
		NewFlags uint32
	}
)

const (
	notifRecv  = 0xc050_2100 // SECCOMP_IOCTL_NOTIF_RECV
	notifAddFD = 0x4018_2103 // SECCOMP_IOCTL_NOTIF_ADDFD
	addSetFD   = 1           // SECCOMP_ADDFD_FLAG_SETFD: at the number NewFD
	addSend    = 2           // SECCOMP_ADDFD_FLAG_SEND: and the call returns that
)

// newInjector makes a helper of p, whose table still has a free number.
func (j *job) newInjector(p *proc) (*injector, error) {
	spare, err := newSpares(wantedPIDs(j.m))
	if err != nil {
		return nil, err
	}
	th, err := j.cloneAs(p, unix.CLONE_FILES|unix.CLONE_VM, 0, 0, spare)
	if err != nil {
		return nil, err
	}
	h, err := j.adopt(-th.TID, th) // it has no node
	if err != nil {
		return nil, err
	}
	prog, err := j.put(h, 0, injectFilter(j.hole.data()))
	if err != nil {
		return nil, err
	}
	if _, err := h.call("forbid itself new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	num, err := h.rem.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, prog)
	if err != nil {
		return nil, &HostError{What: fmt.Sprintf("pid %d uses every descriptor number that the hard limit of open files allows, and its last one takes a seccomp listener", p.pid), Err: err,
			Remedy: "raise the limit of ckptfs (ulimit -Hn) by one, or allow seccomp(2)"}
	}
	pidfd, err := unix.PidfdOpen(h.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("restore pid %d: pidfd_open: %w", h.pid, err)
	}
	defer unix.Close(pidfd)
	in := &injector{p: h}
	if in.listener, err = unix.PidfdGetfd(pidfd, int(num), 0); err != nil {
		return nil, fmt.Errorf("restore pid %d: pidfd_getfd of the seccomp listener: %w", h.pid, err)
	}
	_, err = p.call("close the seccomp listener", unix.SYS_CLOSE, num)
	if err = errors.Join(err, th.EnforceSeccomp()); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// injectFilter is a struct sock_fprog for memory at addr, with its instructions behind it: they
// hand injectCall to the listener and allow the rest.
func injectFilter(addr uint64) []byte {
	const head = 16
	type insn struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	insns := []insn{
		{unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, 0, 0, 0}, // seccomp_data.nr
		{unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, 0, 1, injectCall},
		{unix.BPF_RET | unix.BPF_K, 0, 0, unix.SECCOMP_RET_USER_NOTIF},
		{unix.BPF_RET | unix.BPF_K, 0, 0, unix.SECCOMP_RET_ALLOW},
	}
	b := make([]byte, head)
	le.PutUint16(b, uint16(len(insns)))
	le.PutUint64(b[8:], addr+head)
	for _, i := range insns {
		b = append(le.AppendUint16(b, i.code), i.jt, i.jf)
		b = le.AppendUint32(b, i.k)
	}
	return b
}

// inject puts our descriptor of a file into p's table, and ends the helper.
func (j *job) inject(in *injector, p *proc, to image.FD, fd int) error {
	done := make(chan error, 1)
	go func() {
		defer in.close() // the call then fails, if it has not been answered
		done <- in.answer(to, fd, j.deadline)
	}()
	num, err := in.p.rem.Syscall(injectCall)
	if err = errors.Join(<-done, err); err != nil {
		return fmt.Errorf("restore pid %d: place descriptor %d: %w", p.pid, to.Num, err)
	}
	if num != uint64(to.Num) {
		return fmt.Errorf("restore pid %d: descriptor %d came out as %d", p.pid, to.Num, num)
	}
	if err := in.p.kill(j.deadline); err != nil {
		return fmt.Errorf("restore pid %d: end its helper: %w", p.pid, err)
	}
	_, err = p.call("reap its helper", unix.SYS_WAIT4, uint64(in.p.pid), 0, unix.WALL, 0)
	return err
}

// answer waits for the helper's call and answers it with the file.
func (in *injector) answer(to image.FD, fd int, deadline time.Time) error {
	for {
		fds := []unix.PollFd{{Fd: int32(in.listener), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(deadline).Milliseconds(), 0)))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 || fds[0].Revents&unix.POLLIN == 0 {
			return fmt.Errorf("wait for the helper: %w", errors.Join(err, unix.ETIMEDOUT))
		}
		break
	}
	var n seccompNotif
	if err := ioctl(in.listener, notifRecv, unsafe.Pointer(&n)); err != nil {
		return fmt.Errorf("SECCOMP_IOCTL_NOTIF_RECV: %w", err)
	}
	a := seccompAddFD{ID: n.ID, Flags: addSetFD | addSend, SrcFD: uint32(fd), NewFD: uint32(to.Num)}
	if to.CloExec {
		a.NewFlags = unix.O_CLOEXEC
	}
	if err := ioctl(in.listener, notifAddFD, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("SECCOMP_IOCTL_NOTIF_ADDFD: %w", err)
	}
	return nil
}

func (in *injector) close() {
	closeFD(in.listener)
	in.listener = -1
}

func ioctl(fd int, call uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
