package restore

import (
	"context"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// buildState gives a process with memory its files, directories and threads.
func (j *job) buildState(ctx context.Context, p *proc) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restore pid %d: %w", p.pid, err)
	}
	if err := j.placeFiles(p); err != nil {
		return err
	}
	if err := j.finishFiles(p); err != nil {
		return err
	}
	err := p.batch(func(b *ptrace.Batch) { task.WriteFS(b, &j.m.FSs[p.task.Threads[0].FS-1]) })
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if p.task.XCompPerm != 0 {
		if err := p.batch(func(b *ptrace.Batch) { task.WriteCPUProcess(b, p.task) }); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	if err := j.makeThreads(p); err != nil {
		return err
	}
	return p.eachThread(func(th *ptrace.Thread, it *image.Thread) error {
		if err := j.tryRegisters(p, th, it); err != nil {
			return err
		}
		return p.batch(func(b *ptrace.Batch) { task.WriteThread(b, it) })
	})
}

// tryRegisters sets a thread's registers although it will get them last of all, so that
// those which the kernel does not take are found out while all can be undone without a trace.
func (j *job) tryRegisters(p *proc, th *ptrace.Thread, it *image.Thread) error {
	if tiles(it) {
		if err := p.rem.EnableTiles(j.hole.data()); err != nil {
			return err
		}
	}
	regs, err := ptrace.BytesRegs(it.Regs)
	if err != nil {
		return err
	}
	if err := th.SetRegs(&regs); err != nil {
		return err
	}
	return th.SetXState(j.xstates[it.TID])
}

// placeFiles sends a process its files and moves them to their numbers. A table that it
// shares with its parent is in place already.
func (j *job) placeFiles(p *proc) error {
	if j.sharing(pidNode(j.m.Tasks, p.task.PPID), p.node)&unix.CLONE_FILES != 0 {
		return nil
	}
	table := j.m.FDTables[p.task.Threads[0].FDTable-1].FDs
	index := map[image.ObjRef]int{}
	var fds []int
	add := func(ref image.ObjRef) {
		if _, ok := index[ref]; !ok && ref != 0 {
			index[ref] = len(fds)
			fds = append(fds, j.files[ref-1])
		}
	}
	for _, fd := range table {
		add(fd.File)
	}
	add(p.task.CtlTTY)
	areas, err := j.openAreas(p, j.highestFD(p.task), len(fds))
	if err != nil {
		return err
	}
	nums, err := j.pass(p, areas, fds)
	if err != nil {
		return err
	}
	f := &feeder{p: p}
	for _, fd := range table {
		b, err := f.batch()
		if err != nil {
			return err
		}
		flags := uint64(0)
		if fd.CloExec {
			flags = unix.O_CLOEXEC
		}
		b.Call(unix.SYS_DUP3, uint64(nums[index[fd.File]]), uint64(fd.Num), flags).Label(fmt.Sprintf("place descriptor %d", fd.Num))
	}
	if err := f.flush(); err != nil {
		return err
	}
	if ref := p.task.CtlTTY; ref != 0 {
		j.takeTerminal(p, ref, nums[index[ref]])
	}
	return areas.closeArea(p, false)
}

// takeTerminal makes a terminal the controlling one of the session that p leads, if what
// was opened is a terminal and nobody else has it.
func (j *job) takeTerminal(p *proc, ref image.ObjRef, num int) {
	if _, err := unix.IoctlGetTermios(j.files[ref-1], unix.TCGETS); err != nil {
		return // it is gone, which the list of losses says
	}
	if _, err := p.rem.Syscall(unix.SYS_IOCTL, uint64(num), unix.TIOCSCTTY, 0); err != nil {
		j.warn("pid %d: terminal %s does not control its session any more: %v", p.pid, j.m.Files[ref-1].Path, err)
	}
}

// finishFiles takes the late steps of p's files: each kind says for which processes.
func (j *job) finishFiles(p *proc) error {
	done := map[image.ObjRef]bool{} // a file may have several numbers here
	for _, fd := range j.m.FDTables[p.task.Threads[0].FDTable-1].FDs {
		rec := &j.m.Files[fd.File-1]
		f, ok := kind.ByName(rec.Kind).(kind.Finisher)
		if !ok || done[fd.File] {
			continue
		}
		pids, err := f.FinishPIDs(rec)
		if err != nil {
			return j.fileError(fd.File, "", "", err)
		}
		if !slices.Contains(pids, int32(p.pid)) {
			continue
		}
		if err := f.Finish(rec, int(fd.Num), remoteProcess{j, p}); err != nil {
			return j.fileError(fd.File, "", "", err)
		}
		done[fd.File] = true
	}
	return nil
}

// remoteProcess is a kind.Process.
type remoteProcess struct {
	j *job
	p *proc
}

func (r remoteProcess) Syscall(nr uintptr, args ...uint64) (uint64, error) {
	return r.p.rem.Syscall(nr, args...)
}

func (r remoteProcess) Put(b []byte) (uint64, error) { return r.j.put(r.p, 0, b) }

func (r remoteProcess) PID() int { return r.p.pid }

// threadFlags are what pthread_create(3) passes, without what registers addresses: that is
// done in the thread.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// makeThreads makes the other threads of a process, with the ids they had.
func (j *job) makeThreads(p *proc) error {
	for i := range p.task.Threads[1:] {
		th, err := j.clone(p, threadFlags, 0, int(p.task.Threads[i+1].TID))
		if th != nil {
			p.threads = append(p.threads, th)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eachThread runs f for every thread while that is the one that carries out remote calls,
// the leader last.
func (p *proc) eachThread(f func(th *ptrace.Thread, it *image.Thread) error) error {
	for n := range p.threads {
		i := (n + 1) % len(p.threads)
		if err := p.rem.Use(p.threads[i]); err != nil {
			return fmt.Errorf("restore pid %d: %w", p.pid, err)
		}
		if err := f(p.threads[i], &p.task.Threads[i]); err != nil {
			return fmt.Errorf("restore thread %d: %w", p.threads[i].TID, err)
		}
	}
	return nil
}
