package restore

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// planTerminals finds out which open files are the terminals of sessions. They are needed when
// the tree is built, before any process gets its files, so they keep descriptors of ours.
func (j *job) planTerminals() error {
	groups, leaders := map[int32]int32{}, map[image.ObjRef]int32{}
	for i := range j.m.Tasks {
		groups[j.m.Tasks[i].PGID] = j.m.Tasks[i].SID
	}
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if t.CtlTTY == 0 || t.State == image.TaskZombie {
			continue
		}
		j.ttys[t.CtlTTY] = -1
		pty := kind.PTY(j.m.Files, t.CtlTTY)
		if pty == 0 {
			continue
		}
		if other, ok := leaders[pty]; ok {
			return &ImageError{int(t.PID), fmt.Sprintf("its session has the same controlling terminal as that of pid %d", other)}
		}
		if t.Foreground != 0 && groups[t.Foreground] != t.PID {
			return &ImageError{int(t.PID), fmt.Sprintf("process group %d is the foreground one of its terminal, and not one of its session", t.Foreground)}
		}
		leaders[pty] = t.PID
	}
	return nil
}

// openPeers opens the terminals of sessions that have only a master in the image.
func (j *job) openPeers() error {
	for ref, fd := range j.ttys {
		if kind.PTY(j.m.Files, ref) != ref {
			continue
		}
		slave, err := kind.OpenSlave(fd)
		if err != nil {
			return j.fileError(ref, "open its slave, which controls a session", "", err)
		}
		j.peers[ref] = slave
	}
	return nil
}

// lost tells of a terminal that does not do what it did: an error if it is one that was made anew.
func (j *job) lost(ref image.ObjRef, text string, err error) error {
	if kind.PTY(j.m.Files, ref) != 0 {
		return j.fileError(ref, text, "", err)
	}
	j.warn("%s: %v", text, err)
	return nil
}

// takeTerminal makes its terminal the controlling one of the session that a stub has just
// made, if what was opened is a terminal and nobody else has it. Who is forked in the session from
// now on has it too; there is no other way to it.
func (j *job) takeTerminal(p *proc) error {
	return j.atTerminal(p, func(num uint64) error {
		if _, err := p.rem.Syscall(unix.SYS_IOCTL, num, unix.TIOCSCTTY, 0); err != nil {
			return j.lost(p.task.CtlTTY, fmt.Sprintf("pid %d: terminal %s does not control its session any more", p.pid, j.m.Files[p.task.CtlTTY-1].Path), err)
		}
		return nil
	})
}

// setForeground makes a process group the foreground one of its session's terminal again, when all
// groups are there.
func (j *job) setForeground(p *proc) error {
	if p.task.Foreground == 0 {
		return nil
	}
	return j.atTerminal(p, func(num uint64) error {
		addr, err := j.put(p, 0, le.AppendUint32(nil, uint32(p.task.Foreground)))
		if err != nil {
			return err
		}
		if _, err := p.rem.Syscall(unix.SYS_IOCTL, num, unix.TIOCSPGRP, addr); err != nil {
			return j.lost(p.task.CtlTTY, fmt.Sprintf("pid %d: process group %d is not the foreground one of terminal %s any more", p.pid, p.task.Foreground, j.m.Files[p.task.CtlTTY-1].Path), err)
		}
		return nil
	})
}

// atTerminal runs f while a stub that leads a session has the session's terminal open, as
// descriptor num, if there is one. The stub has no files yet.
func (j *job) atTerminal(p *proc, f func(num uint64) error) error {
	if p.task == nil {
		return nil
	}
	fd, ok := j.ttys[p.task.CtlTTY]
	if !ok {
		return nil
	}
	if slave, ok := j.peers[p.task.CtlTTY]; ok {
		fd = slave
	}
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return nil // it is gone, which the list of losses says
	}
	num := uint64(0)
	err := j.arrive(p, 0, nil, []int{fd}, unix.MSG_CMSG_CLOEXEC, func(_ *ptrace.Batch, at []int) { num = uint64(at[0]) })
	if err != nil {
		return err
	}
	if err := f(num); err != nil {
		return err
	}
	_, err = p.call("close the terminal", unix.SYS_CLOSE, num)
	return err
}
