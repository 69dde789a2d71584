package ckpt

import (
	"errors"
	"fmt"
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
	if err := image.Refusals(checkShared(pids, stats, procs[0].stat.PPID)); err != nil {
		return err
	}
	c.tables = findTables(pids, frozenThreads(procs))
	if err := image.Refusals(c.tables.check(procs[0].stat.PPID)); err != nil {
		return err
	}
	c.tables.ownRefs(len(pids), c.refs)
	c.dirs = sharers(pids, kcmpFS)
	var err error
	if c.shm, err = sysv.ReadShm(); err != nil {
		return err
	}
	kind.QuietRings(s.rings)         // before any memory is copied
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

// captureProcs reads the processes, one after the other.
func (c *Checkpoint) captureProcs(procs []*proc, undo *undoStack) error {
	for _, p := range procs {
		if p.zombie() {
			c.m.Tasks = append(c.m.Tasks, zombieTask(p))
			continue
		}
		if err := c.captureProc(p, undo); err != nil {
			return err
		}
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
func (c *Checkpoint) captureProc(p *proc, undo *undoStack) (err error) {
	step := c.op.Step("capture", p.pid).Count("threads", int64(len(p.threads)))
	defer func() { step.End(err) }()
	status, err := readStatus(p.pid)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	t, mm, sh := identity(&p.stat), image.MM{}, image.Sighand{}
	c.ttys[t.PID] = p.stat.TTY
	if p.stat.TPGID > 0 && p.stat.TPGID != p.stat.PGID {
		t.Foreground = int32(p.stat.TPGID)
	}
	if err := task.ReadTaskOutside(p.pid, &t, &mm); err != nil {
		return err
	}
	fs, err := readFS(p.pid)
	if err != nil {
		return err
	}
	if p.remote, err = ptrace.NewRemote(p.pid); err != nil {
		return err
	}
	undo.push("undo:calls", p.pid, func() error { return ignoreGone(p.remote.Close()) })
	c.procs = append(c.procs, p)
	ref := image.ObjRef(len(c.m.MMs) + 1) // one record of each per process, used or not
	c.refs[p.pid] = ref
	if err := c.captureTraced(p, &t); err != nil {
		return err
	}
	since := time.Now()
	if err := c.captureInside(p, status, &t, &mm, &sh); err != nil {
		return err
	}
	if err := task.ReadPending(p.threads[0].Thread, &t, since); err != nil {
		return err
	}
	t.MM, t.Sighand = ref, ref
	c.m.Tasks = append(c.m.Tasks, t)
	c.m.MMs = append(c.m.MMs, mm)
	c.m.Sighands = append(c.m.Sighands, sh)
	c.m.FSs = append(c.m.FSs, fs)
	return nil
}

// readFS reads the directories of a process; a working directory that was deleted becomes a
// record like that of an open one.
func readFS(pid int) (image.FS, error) {
	fs, gone, err := task.ReadFS(pid, pid)
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
	fs, gone, err := task.ReadFS(pid, pid)
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

// captureTraced reads what ptrace and /proc tell of each thread.
func (c *Checkpoint) captureTraced(p *proc, t *image.Task) error {
	for i, th := range p.threads {
		var err error
		if th.state, err = th.Capture(p.remote.Mem()); err != nil {
			return err
		}
		it := image.Thread{TID: int32(th.TID), FDTable: c.shared(c.tables.first, c.tables.user(p.pid, th.TID)), FS: c.shared(c.dirs, p.pid)}
		if err := task.ReadThreadOutside(p.pid, th.TID, &it); err != nil {
			return err
		}
		if err := task.ReadTraced(th.Thread, th.state, &it); err != nil {
			return err
		}
		c.sleepers.blocked(&it, th.state)
		t.Threads = append(t.Threads, it)
		if i == 0 {
			if th.state.GroupStop {
				t.State, t.StopSignal = image.TaskStopped, int32(th.stop.Signal)
			}
		}
	}
	return nil
}

// captureInside asks the threads themselves, one after the other, and lets the leader make
// the snapshot.
func (c *Checkpoint) captureInside(p *proc, status procfs.Status, t *image.Task, mm *image.MM, sh *image.Sighand) error {
	timers, err := readTimers(p.pid)
	if err != nil {
		return err
	}
	for i, th := range p.threads {
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
		if err := p.remote.Sweep(p.pid); err != nil {
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

// captureMemory finds the mappings, copies what a fork would not hold and makes the
// copy-on-write child. A kernel that refuses the clone costs time, not the checkpoint: then
// everything is copied now. It comes after the remote calls, which have removed what a killed
// predecessor left mapped.
//
// locked is how many bytes mlock(2) holds: a fork does not pass those flags on, so what the
// look knows of them has to be still true, or they are read now.
func (c *Checkpoint) captureMemory(p *proc, locked uint64) (err error) {
	step := c.op.Step("snapshot", p.pid)
	if step != nil {
		defer func() { step.Count("vmas", int64(len(p.mem.areas))).Count("copied", p.mem.copied()).End(err) }()
	}
	if err := p.readAreas(!c.snapshots()); err != nil {
		return err
	}
	if err := p.readPolicies(c.o.policies || !c.snapshots()); err != nil || !c.snapshots() {
		return err
	}
	if locked > 0 && !p.locksKnown(locked) {
		if err := p.readAreas(true); err != nil {
			return err
		}
	}
	if err := p.copyFrozen(false); err != nil {
		return err
	}
	leader := p.threads[0]
	if err := p.remote.Enter(leader.Thread, leader.state); err != nil {
		return err
	}
	snap, err := p.remote.Snapshot(time.Now().Add(c.o.Timeout), p.mem.attachments()...)
	if lerr := p.remote.Leave(); lerr != nil {
		if err == nil {
			err = snap.Close()
		}
		return errors.Join(lerr, err)
	}
	if err == nil {
		p.mem.snap, p.mem.pid = snap, snap.PID
		return nil
	}
	c.log("pid %d: no copy-on-write snapshot (%v): its memory is copied while it is frozen", p.pid, err)
	p.mem.free()
	if err := p.readAreas(true); err != nil {
		return err
	}
	if err := p.readPolicies(true); err != nil {
		return err
	}
	return p.copyFrozen(true)
}

// captured is what captureFiles has read.
type captured struct {
	files  []image.File
	tables []image.FDTable // one for each of the processes, in their order; a shared one is the first one's; then those of threads
	ttys   map[uint64]image.ObjRef
	ctl    map[int]image.ObjRef // terminals by session, of those whose master is in the tree
	lost   []image.Finding
	err    error
}

// captureFiles reads the open files in a goroutine of its own. The kinds are asked again: the
// tree is still now, so what they say is final.
func (c *Checkpoint) captureFiles(s *survey, pids []int) <-chan captured {
	out := make(chan captured, 1)
	c.reading.Add(1)
	go ptrace.Hurried(func() {
		defer c.reading.Done()
		got, err := c.readFiles(s, pids)
		got.err = err
		out <- got
	})
	return out
}

func (c *Checkpoint) readFiles(s *survey, pids []int) (got captured, err error) {
	step := c.op.Step("files", s.root)
	fds := 0
	defer func() { step.Count("fds", int64(fds)).Count("files", int64(len(got.files))).End(err) }()
	set, err := collectFiles(c.tables, true)
	if err != nil {
		return got, err
	}
	for _, slots := range set.slots {
		fds += len(slots)
	}
	defer set.close()
	sc := s.scene(set) // with the answers about other processes that the look has got
	sc.Still = true
	if c.o.After != Resume || c.frozen {
		sc.Hush = c.hush
	}
	sc.Blob, sc.Segment, sc.Gone = c.blob, c.segs.ofFile, c.segs.ofGoneFile
	got.lost = set.check(sc)
	if err := image.Refusals(got.lost); err != nil {
		return got, err
	}
	if got.files, err = set.dump(sc, &holders{pids, c.tables}); err != nil {
		return got, err
	}
	for _, pid := range pids {
		got.tables = append(got.tables, set.table(pid))
	}
	for _, id := range c.tables.ids {
		if c.tables.own[id] != 0 {
			got.tables = append(got.tables, set.table(id))
		}
	}
	got.ttys, got.ctl = terminals(set.found), sc.Controlled()
	return got, nil
}

// addFiles puts what captureFiles has read into the manifest.
func (c *Checkpoint) addFiles(got captured) {
	c.m.Files, c.m.FDTables, c.m.Lost = got.files, got.tables, append(c.m.Lost, got.lost...)
	for i := range c.m.Tasks {
		if t := &c.m.Tasks[i]; t.SID == t.PID && c.ttys[t.PID] != 0 {
			if t.CtlTTY = got.ctl[int(t.PID)]; t.CtlTTY == 0 {
				t.CtlTTY = got.ttys[ttyDev(c.ttys[t.PID])]
			}
		}
		if t := &c.m.Tasks[i]; t.CtlTTY == 0 {
			t.Foreground = 0
		}
	}
	c.foreground()
}

// blob is kind.Scene.Blob.
func (c *Checkpoint) blob(b []byte) image.ObjRef {
	c.blobs = append(c.blobs, b)
	c.m.Blobs = append(c.m.Blobs, image.Blob{Len: int64(len(b))})
	return image.ObjRef(len(c.blobs))
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
