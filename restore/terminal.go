package restore

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// planTerminals finds out which open files are the terminals of sessions. They are needed when
// the tree is built, before any process gets its files, so they keep descriptors of ours.
func (j *job) planTerminals() {
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if t.CtlTTY != 0 && t.State != image.TaskZombie {
			j.ttys[t.CtlTTY] = -1
		}
	}
}

// takeTerminal makes its terminal the controlling one of the session that a stub has just
// made, if what was opened is a terminal and nobody else has it. Who is forked in the session from
// now on has it too; there is no other way to it.
func (j *job) takeTerminal(p *proc) error {
	return j.atTerminal(p, func(num uint64) error {
		if _, err := p.rem.Syscall(unix.SYS_IOCTL, num, unix.TIOCSCTTY, 0); err != nil {
			j.warn("pid %d: terminal %s does not control its session any more: %v", p.pid, j.m.Files[p.task.CtlTTY-1].Path, err)
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
			j.warn("pid %d: process group %d is not the foreground one of terminal %s any more: %v", p.pid, p.task.Foreground, j.m.Files[p.task.CtlTTY-1].Path, err)
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
