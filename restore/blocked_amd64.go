package restore

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// A thread that was asleep with a timeout goes on, in the process it was in, by the kernel's
// restart block, which knows the moment at which the sleep ends. A new thread gets a
// restart block only by falling asleep in the same call and being interrupted. So the call
// is made in it for the time that was left and interrupted at once; the registers then
// say "go on by the restart block" (rax -516), and the kernel does, if it still does not
// find that the call is over.

const (
	restartSys   = -512 // ERESTARTSYS of linux/errno.h
	restartBlock = -516 // ERESTART_RESTARTBLOCK
	fullTime     = -1   // image.Blocked.Remaining: not known
	noTimeout    = -2   // image.Blocked.Remaining: the call has none
)

// restartSleeps restarts the timed sleeps of a process's threads.
func (j *job) restartSleeps(p *proc) error {
	p.sleeps = map[int][]byte{}
	for i := range p.task.Threads {
		it := &p.task.Threads[i]
		if it.Blocked == nil {
			continue
		}
		args, ok, err := j.sleepArgs(p, it.Blocked)
		if err != nil {
			return err
		}
		if !ok {
			continue // a call that this version does not know: the registers say EINTR
		}
		regs, err := j.restartSleep(p.threads[i], it, args)
		if err != nil {
			return fmt.Errorf("restore thread %d: restart its sleep (system call %d): %w", it.TID, it.Blocked.NR, err)
		}
		p.sleeps[i] = regs
	}
	return nil
}

// sleepArgs returns the arguments for the time that is left. A timespec lies in the stub's
// memory: the kernel reads it when the call begins.
func (j *job) sleepArgs(p *proc, bl *image.Blocked) (args [6]uint64, ok bool, err error) {
	args = bl.Args
	timespecArg := -1
	switch bl.NR {
	case unix.SYS_NANOSLEEP:
		timespecArg = 0
	case unix.SYS_CLOCK_NANOSLEEP:
		timespecArg = 2
	case unix.SYS_FUTEX:
		timespecArg = 3
	case unix.SYS_POLL:
	default:
		return args, false, nil
	}
	switch {
	case bl.Remaining == noTimeout, bl.Remaining == fullTime:
		return args, true, nil // just as it was: the program's own timespec, if any
	case bl.NR == unix.SYS_POLL:
		args[2] = uint64((bl.Remaining + 999_999) / 1e6)
		return args, true, nil
	}
	ts := le.AppendUint64(le.AppendUint64(nil, uint64(bl.Remaining/1e9)), uint64(bl.Remaining%1e9))
	args[timespecArg], err = j.put(p, 0, ts)
	return args, true, err
}

// restartSleep puts a thread to sleep and interrupts it. It returns the registers that it is
// to go on with.
func (j *job) restartSleep(th *ptrace.Thread, it *image.Thread, args [6]uint64) ([]byte, error) {
	want, err := ptrace.BytesRegs(it.Regs)
	if err != nil {
		return nil, err
	}
	after := want.Rip // behind the syscall instruction
	if want.Rax == uint64(it.Blocked.NR) {
		after += syscallLen // the registers are set to make the call again
	}
	regs := want
	regs.Rip, regs.Rax, regs.Orig_rax = j.hole.insn(), uint64(it.Blocked.NR), ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	if err := th.SetSigMask(^uint64(0)); err != nil {
		return nil, err
	}
	got, err := th.InterruptCall(&regs, j.deadline)
	if err != nil {
		return nil, err
	}
	want.Rip, want.Rax, want.Orig_rax = after, got.Rax, ^uint64(0)
	if r := int64(got.Rax); r <= restartSys && r >= restartBlock {
		want.Orig_rax = uint64(it.Blocked.NR)
	}
	return ptrace.RegsBytes(&want), nil
}
