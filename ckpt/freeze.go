package ckpt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// proc is one process of a frozen tree.
type proc struct {
	pid     int
	tr      *ptrace.Tracer // that has seized it
	stat    procfs.Stat    // zombies have nothing else
	looked  *looked        // nil if it came into being after the look
	threads []*thread      // the leader first
	helpers bool           // those of a checkpoint that was killed are children of it
	alike   *task.Alike
	remote  *ptrace.Remote
	mem     memory
	track   *tracking // of its writes; nil: none

	policies map[uint64]*image.MemPolicy // NUMA policies of mappings, by where they start
	asked    bool                        // for all of them
	aio      map[uint64]*image.AIO       // AIO contexts, by where their rings start
}

// thread is one stopped thread.
type thread struct {
	*ptrace.Thread
	state *ptrace.State
	stop  ptrace.Stop
}

func (p *proc) zombie() bool { return len(p.threads) == 0 }

// freezer stops a tree.
type freezer struct {
	ts       *tracers
	of       map[int]*ptrace.Tracer // by pid
	undo     *undoStack
	deadline time.Time
	procs    []*proc
	byPID    map[int]*proc
	seized   map[int]bool // by thread id
}

// freezeTree stops the tree below root and returns its processes, zombies too. of says which tracer a process is
// for; what it does not know the first one gets.
func freezeTree(ctx context.Context, ts *tracers, of map[int]*ptrace.Tracer, root int, deadline time.Time, undo *undoStack) (procs []*proc, err error) {
	step := undo.op.Step("freeze", root)
	f := &freezer{ts: ts, of: of, undo: undo, deadline: deadline}
	defer func() {
		step.Count("processes", int64(len(f.procs))).Count("threads", int64(len(f.seized))).End(err)
	}()
	if err := f.freeze(ctx, root); err != nil {
		return nil, err
	}
	if err := f.settle(root); err != nil {
		return nil, err
	}
	return f.procs, nil
}

// freeze stops every thread of every process below root. Processes and threads are looked
// for again until a pass finds nothing new: then nobody is left who could make more. The
// undo that lets each thread go is pushed as soon as it is seized.
func (f *freezer) freeze(ctx context.Context, root int) error {
	f.byPID, f.seized = map[int]*proc{}, map[int]bool{}
	for pass := 0; ; pass++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("freeze the tree of pid %d: %w", root, err)
		}
		if time.Now().After(f.deadline) {
			return fmt.Errorf("freeze the tree of pid %d: it made new processes faster than they could be stopped, %d of them; try a longer --timeout", root, len(f.procs))
		}
		fresh, err := f.pass(root)
		if err != nil {
			return err
		}
		if fresh == 0 {
			return nil
		}
	}
}

// pass seizes what it finds, parents before their children, and waits for each process to
// stop before it goes on to the next: a parent that waits in vfork(2) can only stop when its
// child has called exec, so the child must not be stopped yet.
func (f *freezer) pass(root int) (fresh int, err error) {
	pids, err := descend(root)
	if err != nil {
		return 0, err
	}
	for len(pids) > 0 {
		tr, n := f.tracer(pids[0]), 1
		for n < len(pids) && f.tracer(pids[n]) == tr {
			n++
		}
		err := tr.Do(func() error {
			for _, pid := range pids[:n] {
				step := f.undo.op.Step("stop", pid)
				n, err := f.stop(pid, pid == root)
				if n > 0 || err != nil {
					step.Count("threads", int64(n)).End(err)
				}
				if err != nil {
					return err
				}
				fresh += n
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		pids = pids[n:]
	}
	return fresh, nil
}

// tracer is the one that traces a process.
func (f *freezer) tracer(pid int) *ptrace.Tracer {
	if t := f.of[pid]; t != nil {
		return t
	}
	return f.ts.first()
}

// stop seizes the threads of one process that are not seized yet, waits until they stop, and
// returns how many they were.
func (f *freezer) stop(pid int, root bool) (int, error) {
	waiting, err := f.seize(pid, root)
	if err != nil {
		return 0, err
	}
	for _, th := range slices.Backward(waiting) { // when the last has stopped, all have as a rule: one sleep instead of many
		if th.stop, err = f.wait(th); err != nil {
			var g *ptrace.GoneError
			if errors.As(err, &g) {
				f.forget(th)
				continue
			}
			return 0, err
		}
	}
	return len(waiting), nil
}

// vforkPatience is how long a thread may wait in vfork(2) while its tree is being stopped.
const vforkPatience = 50 * time.Millisecond

// wait waits until a seized thread stops.
func (f *freezer) wait(th *thread) (ptrace.Stop, error) {
	early := time.Now().Add(vforkPatience)
	if early.Before(f.deadline) {
		stop, err := th.WaitStop(early)
		var late *ptrace.TimeoutError
		if !errors.As(err, &late) || late.VFork {
			return stop, err
		}
	}
	return th.WaitStop(f.deadline)
}

// seize seizes the threads of one process that are not seized yet.
func (f *freezer) seize(pid int, root bool) ([]*thread, error) {
	p := f.byPID[pid]
	if p == nil {
		st, err := readStat(pid)
		if gone(err) && !root {
			return nil, nil
		}
		if err != nil {
			return nil, &TargetError{pid, vanished(err), ""}
		}
		if f.helper(&st) {
			return nil, nil
		}
		p = &proc{pid: pid, tr: f.tracer(pid), stat: st}
		f.byPID[pid] = p
		f.procs = append(f.procs, p)
	}
	tids, err := threads(pid)
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("pid %d: list its threads: %w", pid, err)
	}
	var out []*thread
	tids = slices.DeleteFunc(tids, func(tid int) bool { return f.seized[tid] })
	known := briefs(pid, tids)
	for _, tid := range tids {
		if tid != pid && isRingWorker(pid, tid, known) {
			continue
		}
		th, err := p.tr.Seize(tid, unix.PTRACE_O_TRACESYSGOOD)
		var g *ptrace.GoneError
		if errors.As(err, &g) {
			continue // a zombie, or it ended a moment ago
		}
		if err != nil {
			return nil, err
		}
		f.undo.push("undo:detach", tid, p.tr, func() error { return ignoreGone(th.Detach()) })
		f.seized[tid] = true
		t := &thread{Thread: th}
		p.threads = append(p.threads, t)
		out = append(out, t)
	}
	return out, nil
}

// helper reports whether a process is what is left of the helper of a checkpoint that was killed. Sweep reaps it.
func (f *freezer) helper(st *procfs.Stat) bool {
	if st.State != 'Z' || st.ExitSignal != 0 {
		return false
	}
	if parent := f.byPID[st.PPID]; parent != nil {
		parent.helpers = true
	}
	return true
}

// forget drops a thread that ended while it was waited for.
func (f *freezer) forget(th *thread) {
	delete(f.seized, th.TID)
	for _, p := range f.procs {
		for i, t := range p.threads {
			if t == th {
				p.threads = append(p.threads[:i], p.threads[i+1:]...)
				return
			}
		}
	}
}

// settle drops processes that vanished and reads again those that became zombies on the way.
func (f *freezer) settle(root int) error {
	kept := f.procs[:0]
	for _, p := range f.procs {
		st, err := readStat(p.pid)
		switch {
		case gone(err) && p.pid == root:
			return &TargetError{p.pid, ErrNoProcess, "it ended while it was being stopped"}
		case gone(err):
			continue
		case err != nil:
			return fmt.Errorf("pid %d: %w", p.pid, err)
		case st.State == 'Z' && p.pid == root:
			return &TargetError{p.pid, ErrZombie, "it ended while it was being stopped"}
		case st.State != 'Z' && (p.zombie() || p.threads[0].TID != p.pid):
			return fmt.Errorf("pid %d: its main thread has ended while others run on, which cannot be checkpointed; wait until it ends", p.pid)
		}
		if st.State == 'Z' {
			p.threads = nil
			f.helper(&st)
		}
		p.stat = st
		kept = append(kept, p)
	}
	f.procs = kept
	return nil
}

func vanished(err error) error {
	if gone(err) {
		return ErrNoProcess
	}
	return err
}

// ignoreGone drops the error of undoing something in a thread that has ended: SIGKILL works
// on a stopped thread too, and then there is nothing left to undo.
func ignoreGone(err error) error {
	var g *ptrace.GoneError
	if errors.As(err, &g) {
		return nil
	}
	return err
}
