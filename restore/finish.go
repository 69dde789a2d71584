package restore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// finish does what must come last: locks, limits, credentials, then what a change of credentials
// would undo and what starts a clock, and scheduling, which could slow the rest down. After it
// nothing of ours is left in the processes, and they are only held by ptrace.
func (j *job) finish(alive []*proc) error {
	type stage struct {
		name string
		f    func(p *proc) error
	}
	if err := j.settleSysV(); err != nil {
		return err
	}
	if err := j.makeIPC(); err != nil {
		return err
	}
	for _, s := range []stage{{"locks", j.takeLocks}, {"limits", j.writeLimits}, {"credentials", j.writeCreds}} {
		if err := j.each(s.name, alive, s.f); err != nil {
			return err
		}
	}
	// The root's parent is init from now on. This comes before parent-death signals are set,
	// and before any process is stopped, as it may orphan process groups.
	if err := j.byNode[seed].kill(j.deadline); err != nil {
		return err
	}
	j.closeFiles() // what watches them (inotify) is to be told of nothing later
	for _, s := range []stage{{"stop", j.stop}, {"signals", j.writeLast}, {"scheduling", j.writeSched}, {"verify", j.verify}} {
		if err := j.each(s.name, alive, s.f); err != nil {
			return err
		}
	}
	return nil
}

// eachProc runs a stage for every process before the next one begins.
func eachProc(ps []*proc, stage func(p *proc) error) error {
	for _, p := range ps {
		if err := stage(p); err != nil {
			return err
		}
	}
	return nil
}

// writeLimits sets limits and other things of the process that are set from outside.
func (j *job) writeLimits(p *proc) error {
	return task.WriteTaskOutside(p.pid, p.task, &j.m.MMs[p.task.MM-1], func(s string) { j.warn("%s", s) })
}

// writeSched sets the scheduling of its threads.
func (j *job) writeSched(p *proc) error {
	for i := range p.task.Threads {
		th := &p.task.Threads[i]
		if err := task.WriteThreadOutside(int(th.TID), th, func(s string) { j.warn("%s", s) }); err != nil {
			return err
		}
	}
	return nil
}

// writeCreds sets the credentials of its threads, and what remembers them.
func (j *job) writeCreds(p *proc) error {
	err := p.eachThread(func(_ *ptrace.Thread, th *image.Thread) error {
		return p.batch(func(b *ptrace.Batch) { task.WriteCreds(b, th) })
	})
	if err != nil {
		return err
	}
	return j.writeOwners(p)
}

// writeLast sets what decides about signals, what starts clocks and what can be lost on the
// way, restarts the sleeps that threads were in, and takes the stub's memory away.
func (j *job) writeLast(p *proc) error {
	mm := &j.m.MMs[p.task.MM-1]
	if err := dropSignals(p); err != nil {
		return err
	}
	err := p.batch(func(b *ptrace.Batch) { task.WriteSighand(b, &j.m.Sighands[p.task.Sighand-1]) })
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	err = p.eachThread(func(th *ptrace.Thread, it *image.Thread) error {
		leader := th == p.threads[0]
		if err := p.batch(func(b *ptrace.Batch) { task.WriteLast(b, p.task, it, mm, leader) }); err != nil {
			return err
		}
		return task.WriteUrgent(remoteProcess{j, p, p.pid}, p.task, it, leader)
	})
	if err != nil {
		return err
	}
	if err := j.startFiles(p); err != nil {
		return err
	}
	if err := j.restartSleeps(p); err != nil {
		return err
	}
	return j.leaveHole(p)
}

// startFiles starts the clocks of the files that p is the first to have.
func (j *job) startFiles(p *proc) error {
	return j.eachTable(p, func(u holding) error { return j.startTable(p, u) })
}

func (j *job) startTable(p *proc, u holding) error {
	for _, fd := range u.fds {
		rec := &j.m.Files[fd.File-1]
		s, ok := kind.ByName(rec.Kind).(kind.Starter)
		if !ok || j.holder[fd.File] != (slot{u.id, int(fd.Num)}) {
			continue
		}
		if err := s.Start(rec, int(fd.Num), j.remote(p, u)); err != nil {
			return j.fileError(fd.File, "", "", err)
		}
	}
	return nil
}

// leaveHole unmaps the stub's memory, by the syscall instruction of the vdso.
func (j *job) leaveHole(p *proc) error {
	insn, err := findSyscall(p, &j.m.MMs[p.task.MM-1])
	if err != nil {
		return err
	}
	p.rem.SetSyscallInsn(insn)
	if err := p.rem.SetScratch(0, 0); err != nil {
		return err
	}
	_, err = p.call("unmap the stub", unix.SYS_MUNMAP, uint64(j.hole), holeLen)
	return err
}

// findSyscall returns the address of a syscall instruction in the vdso.
func findSyscall(p *proc, mm *image.MM) (uint64, error) {
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		if v.Kind != image.VMAVDSO {
			continue
		}
		b := make([]byte, v.End-v.Start)
		if _, err := p.rem.Mem().ReadAt(b, int64(v.Start)); err != nil {
			return 0, fmt.Errorf("restore pid %d: read the vdso at %#x: %w", p.pid, v.Start, err)
		}
		for at := range b[1:] {
			if b[at] == syscallInsn[0] && b[at+1] == syscallInsn[1] {
				return v.Start + uint64(at), nil
			}
		}
	}
	return 0, &HostError{What: fmt.Sprintf("pid %d: there is no syscall instruction in its vdso", p.pid), Remedy: "restore it under the kernel it was taken on"}
}

// letGo gives every thread its registers, and when all have them lets all go.
func (j *job) letGo(alive []*proc) error {
	for _, p := range alive {
		for i, th := range p.threads {
			it := p.task.Threads[i]
			it.XState = j.xstates[it.TID]
			if sleep, ok := p.sleeps[i]; ok {
				it.Regs = sleep
			}
			if err := task.WriteTraced(th, &it); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
	}
	// From here on the tree is whole. If we are killed among the detaches below it is to run, not to die
	// in part; what is left of that danger is the time of this loop, some microseconds for each thread.
	for _, p := range alive {
		for _, th := range p.threads {
			if err := th.Spare(); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
	}
	for _, p := range slices.Backward(alive) {
		for _, th := range slices.Backward(p.threads) {
			var gone *ptrace.GoneError
			if err := th.Detach(); err != nil && !errors.As(err, &gone) { // another thread may have run already, and ended the process
				return fmt.Errorf("restore: %w", err)
			}
		}
	}
	for _, p := range alive {
		if err := p.rem.Close(); err != nil {
			j.log("pid %d: %v", p.pid, err) // it runs
		}
		if p.task.State == image.TaskStopped || j.opt.Stopped {
			awaitStop(p.pid)
		}
	}
	return nil
}

// awaitStop waits until a process that was let go has stopped again: it wakes up for that, and
// who asked for the restore should find it stopped. It may be continued or killed by then.
func awaitStop(pid int) {
	const patience = time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		b, err := quickread.File(procPath(pid, "stat"))
		if err != nil {
			return
		}
		if st, err := procfs.ParseStat(b); err != nil || st.State == 'T' {
			return
		}
	}
}
