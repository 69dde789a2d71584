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
	if err := j.each("files", []*proc{p}, j.buildFiles); err != nil {
		return err
	}
	if err := j.each("threads", []*proc{p}, j.buildThreads); err != nil {
		return err
	}
	return j.buildOwn(p)
}

// buildFiles gives a process its files. If threads have tables of their own, the late steps wait for buildOwn.
func (j *job) buildFiles(p *proc) error {
	if err := j.placeFiles(p); err != nil || len(holdings(j.m, p.task)) > 1 {
		return err
	}
	return j.finishFiles(p)
}

// buildThreads gives a process its directories and threads.
func (j *job) buildThreads(p *proc) error {
	ref := p.task.Threads[0].FS
	err := p.batch(func(b *ptrace.Batch) { task.WriteFS(b, &j.m.FSs[ref-1], j.cwdPath(ref)) })
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
	return j.fillTable(p, j.table(p))
}

// fillTable gives a stub the descriptors of a table, and takes the channel away.
func (j *job) fillTable(p *proc, table []image.FD) (err error) {
	whole := table
	table, apart := j.splitApart(whole)
	if len(apart) > 0 {
		defer func() {
			if err == nil {
				err = j.placeApart(p, whole, apart)
			}
		}()
	}
	channel, highest := channelFor(table), -1
	if len(table) > 0 {
		highest = int(table[len(table)-1].Num)
	}
	room, err := roomFor(p.pid, max(channel, highest)+1)
	if err != nil {
		return err
	}
	if room <= highest {
		return noRoom(p.pid, highest+1, room)
	}
	var in *injector
	if channel >= room { // every number is used
		if in, err = j.newInjector(p); err != nil {
			return err
		}
		channel = 0
	}
	if err := p.moveChannel(channel); err != nil {
		return err
	}
	src := &fileSource{j: j, pidfds: map[int]int{}}
	defer src.close()
	todo := table
	if in != nil {
		todo = table[1:]
	}
	for done := 0; done < len(todo); done += j.depot.size {
		next := todo[done:min(len(todo), done+j.depot.size)]
		fds, own, err := src.get(next)
		if err != nil {
			return err
		}
		err = j.place(p, channel, todo[:done], next, fds)
		closeAll(own)
		if err != nil {
			return err
		}
	}
	if _, err := p.call("close the channel", unix.SYS_CLOSE, uint64(channel)); err != nil || in == nil {
		return err
	}
	fds, own, err := src.get(table[:1])
	if err != nil {
		return err
	}
	defer closeAll(own)
	return j.inject(in, p, table[0], fds[0])
}

// noRoom is the error for a process that cannot have the numbers it needs.
func noRoom(pid, want, room int) error {
	return &HostError{What: fmt.Sprintf("pid %d needs descriptors up to %d, and the hard limit of open files allows only those below %d", pid, want-1, room),
		Remedy: "raise the limit of ckptfs (ulimit -Hn), or run it with CAP_SYS_RESOURCE"}
}

// finishFiles takes the late steps of the files in p's table, and of its mappings of some.
func (j *job) finishFiles(p *proc) error {
	if err := j.finishTable(p, holdings(j.m, p.task)[0]); err != nil {
		return err
	}
	fd := &feeder{p: p}
	return fd.each(j.m.MMs[p.task.MM-1].VMAs, func(b *ptrace.Batch, v *image.VMA) {
		if v.Kind == image.VMARing { // mapped by now
			adviseVMA(b, v)
		}
	})
}

// finishTable takes the late steps of the files in a table: each kind says for which processes.
func (j *job) finishTable(p *proc, u holding) error {
	done := map[image.ObjRef]bool{} // a file may have several numbers here
	for _, fd := range u.fds {
		rec := &j.m.Files[fd.File-1]
		f, ok := kind.ByName(rec.Kind).(kind.Finisher)
		if !ok || done[fd.File] {
			continue
		}
		pids, err := f.FinishPIDs(rec)
		if err != nil {
			return j.fileError(fd.File, "", "", err)
		}
		if !slices.Contains(pids, int32(u.id)) {
			continue
		}
		if err := j.finishFile(p, u, f, rec, int(fd.Num)); err != nil {
			return j.fileError(fd.File, "", "", err)
		}
		done[fd.File] = true
	}
	return nil
}

// remoteProcess is a kind.Process.
type remoteProcess struct {
	j  *job
	p  *proc
	id int // by which the descriptor table goes
}

// remote is a process as the kinds see it, or a thread with a table of its own.
func (j *job) remote(p *proc, u holding) remoteProcess { return remoteProcess{j, p, u.id} }

func (r remoteProcess) Syscall(nr uintptr, args ...uint64) (uint64, error) {
	return r.p.rem.Syscall(nr, args...)
}

func (r remoteProcess) Put(b []byte) (uint64, error) { return r.j.put(r.p, 0, b) }

func (r remoteProcess) PID() int { return r.id }

// threadFlags are what pthread_create(3) passes, without what registers addresses: that is
// done in the thread.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// makeThreads makes the other threads of a process, with the ids they had.
func (j *job) makeThreads(p *proc) error {
	for i := range p.task.Threads[1:] {
		if err := j.makeThread(p, i+1); err != nil {
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
