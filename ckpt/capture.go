package ckpt

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"github.com/ckptfs/ckptfs/ckpt/task"
)

// capture reads the whole state of the frozen tree into the manifest, memory pages excepted.
func (c *Checkpoint) capture(s *survey, procs []*proc, undo *undoStack) error {
	pids := make([]int, 0, len(procs))
	for _, p := range procs {
		if !p.zombie() {
			pids = append(pids, p.pid)
		}
	}
	stats := family{}
	for _, p := range procs {
		stats[p.pid] = &p.stat
	}
	// The look may have missed it: it does not judge who shares memory during a vfork.
	if err := image.Refusals(s.order.checkShared(pids, stats, procs[0].stat.PPID)); err != nil {
		return err
	}
	c.tables = s.order.findTables(pids, frozenThreads(procs))
	if err := image.Refusals(c.tables.check(procs[0].stat.PPID)); err != nil {
		return err
	}
	c.tables.ownRefs(len(pids), c.refs)
	c.dirs = s.order.sharers(pids, kcmpFS)
	var err error
	if c.shm, err = sysv.ReadShm(); err != nil {
		return err
	}
	kind.QuietRings(s.rings) // before any memory is copied
	if err := quietAIO(procs, c.o.Timeout); err != nil {
		return err
	}
	files := c.captureFiles(s, pids) // needs no ptrace, so another CPU can do it
	if err := c.captureProcs(procs, undo); err != nil {
		return err // Close waits for the files
	}
	var got captured
	select {
	case got = <-files:
	case <-time.After(c.o.Timeout):
		return fmt.Errorf("pid %d: its open files could not be read within %v: a network or FUSE filesystem of one of them does not answer; see lsof -p", s.root, c.o.Timeout)
	}
	if got.err != nil {
		return got.err
	}
	c.addFiles(got)
	if err := c.checkRingMaps(); err != nil {
		return err
	}
	return c.captureSegments(s)
}

// proceeds is what the capture of one process yields for the manifest.
type proceeds struct {
	task    image.Task
	mm      image.MM
	sighand image.Sighand
	fs      image.FS
}

// captureProcs reads the processes, as many at the same time as there are tracers.
func (c *Checkpoint) captureProcs(procs []*proc, undo *undoStack) error {
	for _, p := range procs {
		if !p.zombie() {
			c.procs = append(c.procs, p)
			c.refs[p.pid] = image.ObjRef(len(c.procs)) // one record of each per process, used or not
			c.ttys[int32(p.pid)] = p.stat.TTY
		}
	}
	all := make([]proceeds, len(procs))
	var failed atomic.Bool
	err := c.tr.each(func(t *ptrace.Tracer) error {
		for i, p := range procs {
			if p.tr != t || p.zombie() || failed.Load() {
				continue
			}
			if err := c.captureProc(p, &all[i], undo); err != nil {
				failed.Store(true)
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, p := range procs {
		if p.zombie() {
			c.m.Tasks = append(c.m.Tasks, zombieTask(p))
			continue
		}
		got := &all[i]
		c.m.Tasks, c.m.MMs = append(c.m.Tasks, got.task), append(c.m.MMs, got.mm)
		c.m.Sighands, c.m.FSs = append(c.m.Sighands, got.sighand), append(c.m.FSs, got.fs)
	}
	return nil
}

// zombieTask is what is left of an exited process.
func zombieTask(p *proc) image.Task {
	t := identity(&p.stat)
	t.State, t.ExitStatus = image.TaskZombie, int32(p.stat.ExitCode)
	return t
}

func identity(st *procfs.Stat) image.Task {
	return image.Task{PID: int32(st.PID), PPID: int32(st.PPID), PGID: int32(st.PGID), SID: int32(st.SID),
		ExitSignal: int32(st.ExitSignal), Comm: st.Comm, State: image.TaskRunning}
}

// captureProc reads one process: first from outside, then by ptrace, then by remote system
// calls in each of its threads, and last it makes the snapshot of its memory.
func (c *Checkpoint) captureProc(p *proc, got *proceeds, undo *undoStack) (err error) {
	step := c.op.Step("capture", p.pid).Count("threads", int64(len(p.threads)))
	defer func() { step.End(err) }()
	status, err := readStatus(p.pid)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	t := &got.task
	*t = identity(&p.stat)
	if p.stat.TPGID > 0 && p.stat.TPGID != p.stat.PGID {
		t.Foreground = int32(p.stat.TPGID)
	}
	if err := task.ReadTaskOutside(p.pid, t, &got.mm); err != nil {
		return err
	}
	if got.fs, err = readFS(p.pid, &status); err != nil {
		return err
	}
	if p.remote, err = ptrace.NewRemote(p.pid); err != nil {
		return err
	}
	undo.push("undo:calls", p.pid, p.tr, func() error { return ignoreGone(p.remote.Close()) })
	if err := c.captureTraced(p, &status, t); err != nil {
		return err
	}
	since := time.Now()
	if err := c.captureInside(p, status, t, &got.mm, &got.sighand); err != nil {
		return err
	}
	if err := task.ReadPending(p.threads[0].Thread, t, since); err != nil {
		return err
	}
	t.MM, t.Sighand = c.refs[p.pid], c.refs[p.pid]
	return nil
}

// readFS reads the directories of a process; a working directory that was deleted becomes a
// record like that of an open one.
func readFS(pid int, status *procfs.Status) (image.FS, error) {
	fs, gone, err := task.ReadFS(pid, pid, status)
	if err != nil || !gone {
		return fs, err
	}
	if fs.CwdFile, err = kind.GoneDirectory(procPath(pid, "cwd"), fs.Cwd); err != nil {
		return fs, &image.RefusedError{Findings: []image.Finding{goneCwdFinding(pid, err)}}
	}
	return fs, nil
}

// checkGoneCwd refuses a deleted working directory that cannot be made again.
func (s *survey) checkGoneCwd(pid int) {
	fs, gone, err := task.ReadFS(pid, pid, nil)
	if err != nil || !gone {
		return // what else is wrong with its directories task.Check says
	}
	if _, err := kind.GoneDirectory(procPath(pid, "cwd"), fs.Cwd); err != nil {
		s.findings = append(s.findings, goneCwdFinding(pid, err))
	}
}

func goneCwdFinding(pid int, err error) image.Finding {
	return image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: "working directory", What: err.Error(),
		Remedy: "let the program change to another directory, or remove the attribute"}
}

// captureTraced reads what ptrace and /proc tell of each thread; status is the leader's.
func (c *Checkpoint) captureTraced(p *proc, status *procfs.Status, t *image.Task) error {
	t.Threads = make([]image.Thread, len(p.threads))
	if err := c.captureOutside(p, status, t); err != nil {
		return err
	}
	for i, th := range p.threads {
		var err error
		if th.state, err = th.Capture(p.remote.Mem()); err != nil {
			return err
		}
		it := &t.Threads[i]
		it.FDTable, it.FS = c.shared(c.tables.first, c.tables.user(p.pid, th.TID)), c.shared(c.dirs, p.pid)
		if err := task.ReadTraced(th.Thread, th.state, it); err != nil {
			return err
		}
		c.sleepers.blocked(it, th.state)
		if i == 0 {
			if th.state.GroupStop {
				t.State, t.StopSignal = image.TaskStopped, int32(th.stop.Signal)
			}
		}
	}
	return nil
}

// captureOutside reads what others can ask about each thread.
func (c *Checkpoint) captureOutside(p *proc, status *procfs.Status, t *image.Task) error {
	if !c.o.apart {
		tids := make([]int, len(p.threads))
		for i, th := range p.threads {
			tids[i] = th.TID
		}
		p.alike = task.ReadAlike(p.pid, tids)
	}
	var models, rest []int
	for i := range p.threads {
		if p.alike.Model(i) == i {
			models = append(models, i)
		} else {
			rest = append(rest, i)
		}
	}
	errs := make([]error, len(p.threads))
	parallel(len(models), true, func(n int) {
		i, known := models[n], status
		if i > 0 {
			known = nil
		}
		errs[i] = task.ReadThreadOutside(p.pid, p.threads[i].TID, &t.Threads[i], known)
	})
	parallel(len(rest), true, func(n int) {
		i := rest[n]
		errs[i] = p.alike.ReadThreadOutside(i, p.threads[i].TID, &t.Threads[i], &t.Threads[p.alike.Model(i)])
	})
	return errors.Join(errs...)
}

// captureInside asks the threads themselves, one after the other, and lets the leader make
// the snapshot.
func (c *Checkpoint) captureInside(p *proc, status procfs.Status, t *image.Task, mm *image.MM, sh *image.Sighand) error {
	timers, err := readTimers(p.pid)
	if err != nil {
		return err
	}
	for i, th := range p.threads {
		if m := p.alike.Model(i); m != i {
			p.alike.ReadThreadInside(i, &t.Threads[i], &t.Threads[m], th.state.Regs.Rsp)
			continue
		}
		err := c.enterThread(p, th, func(b *ptrace.Batch) []func() error {
			done := []func() error{task.ReadThreadInside(b, &t.Threads[i])}
			if i == 0 {
				done = append(done, task.ReadTaskInside(b, status, timers, t, mm, sh))
			}
			return done
		})
		if err != nil {
			return err
		}
	}
	for _, l := range p.remote.Leftovers() {
		mm.Leftovers = append(mm.Leftovers, image.Leftover{Off: uint32(l.Off), Bytes: l.Bytes})
	}
	orphans := t.Subreaper || len(status.NSpid) > 0 && status.NSpid[len(status.NSpid)-1] == 1
	p.remote.Orphans = &orphans
	return c.captureMemory(p, status.VmLck)
}

// shared is the record of what a process may share: its own, or the one of the process that
// it shares it with.
func (c *Checkpoint) shared(with map[int]int, pid int) image.ObjRef {
	if first := with[pid]; first != 0 {
		pid = first
	}
	return c.refs[pid]
}

// enterThread runs one batch in a thread.
func (c *Checkpoint) enterThread(p *proc, th *thread, queue func(b *ptrace.Batch) []func() error) (err error) {
	if err := p.remote.Enter(th.Thread, th.state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remote.Leave()) }()
	if th == p.threads[0] {
		if err := p.remote.Sweep(p.pid, p.helpers || c.frozen); err != nil { // what came since a tree is held nobody has seen
			return err
		}
	}
	b, err := p.remote.NewBatch()
	if err != nil {
		return err
	}
	done := queue(b)
	if err := b.Run(); err != nil {
		return err
	}
	for _, f := range done {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// readTimers reads /proc/PID/timers, the POSIX timers of a process.
func readTimers(pid int) ([]procfs.Timer, error) {
	b, err := quickread.File(procPath(pid, "timers"))
	if gone(err) {
		return nil, nil // CONFIG_CHECKPOINT_RESTORE is off: task.Check says what follows
	}
	if err != nil {
		return nil, err
	}
	ts, err := procfs.ParseTimers(b)
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/timers: %w", pid, err)
	}
	return ts, nil
}
