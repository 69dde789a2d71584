package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// ownIDs are ours for planTree.
func ownIDs() (hostIDs, error) {
	sid, err := unix.Getsid(0)
	if err != nil {
		return hostIDs{}, fmt.Errorf("find out our session: %w", err)
	}
	return hostIDs{SID: sid, PGID: unix.Getpgrp(), Taken: pidInUse}, nil
}

// plant starts the seed and makes it a stub like those that will grow from it. While the
// tree is built it is the init of the tree: what ends without being waited for by its
// parent comes to it and vanishes, as SIGCHLD is ignored.
func (j *job) plant() error {
	var err error
	if j.channel, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("restore: socketpair: %w", err)
	}
	if done, err := j.plantShared(); done || err != nil {
		return err
	}
	th, err := j.seizeSeed()
	if err != nil {
		return err
	}
	p, err := j.adopt(seed, th)
	if err != nil {
		return err
	}
	if err := j.checkRegisters(th); err != nil {
		return err
	}
	if _, err := p.rem.Mem().WriteAt(syscallInsn, int64(j.hole.insn())); err != nil {
		return fmt.Errorf("restore: write to the stub: %w", err)
	}
	return p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_CLOSE_RANGE, 1, ^uint64(0)>>32, 0).Label("close inherited descriptors")
		for sig := 1; sig <= 64; sig++ {
			if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
				continue
			}
			act := make([]byte, 32)
			if sig == int(unix.SIGCHLD) {
				act[0] = 1 // SIG_IGN
			}
			b.Call(unix.SYS_RT_SIGACTION, uint64(sig), b.Put(act).Addr(), 0, 8).Label("reset a signal action")
		}
		b.Call(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0).Label("become subreaper")
		b.Call(unix.SYS_UMASK, 0)
	})
}

// seizeSeed starts a stub whose id no process of the image needs, and stops it.
func (j *job) seizeSeed() (*ptrace.Thread, error) {
	want := wantedPIDs(j.m)
	for {
		pid, err := startStub(j.hole, j.channel[1])
		if err != nil {
			return nil, err
		}
		th, err := j.tr.Seize(pid, traceOptions)
		if err == nil {
			_, err = th.WaitStop(j.deadline)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("restore: stop the stub: %w", err), unix.Kill(pid, unix.SIGKILL), reap(pid))
		}
		if !want[pid] {
			return th, nil
		}
		if err := errors.Join(th.Kill(), waitEnd(th, j.deadline)); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
}

// reap collects a killed child of ours.
func reap(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkRegisters compares the registers that the kernel saves with those of the image. th is a
// stub that has done nothing yet.
func (j *job) checkRegisters(th *ptrace.Thread) error {
	x, err := th.XState()
	if err != nil {
		return err
	}
	if len(x) < xstateHeadEnd {
		return &HostError{What: fmt.Sprintf("the kernel's XSTATE register set has %d bytes", len(x)), Remedy: "the CPU has no XSAVE, which restore needs"}
	}
	return j.fitRegisters(x)
}

// grow carries out the plan of the tree, then ends the zombies.
func (j *job) grow(ctx context.Context, pl *plan) error {
	spare, err := newSpares(wantedPIDs(j.m))
	if err != nil {
		return err
	}
	for _, st := range pl.steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("restore: make the processes: %w", err)
		}
		if err := j.take(pl, st, spare); err != nil {
			return err
		}
	}
	if err := j.endStandBy(); err != nil {
		return err
	}
	for _, p := range j.alive() {
		p.task = &j.m.Tasks[p.node-1]
		if err := j.plainSignals(p); err != nil {
			return err
		}
		if err := j.setForeground(p); err != nil {
			return err
		}
	}
	return j.endZombies()
}

// take carries out one step of the plan.
func (j *job) take(pl *plan, st step, spare *spares) error {
	n := pl.nodes[st.Node]
	from := j.byNode[st.From]
	if done, err := j.bornOfStandBy(st, n, spare); done || err != nil {
		return err
	}
	switch st.Op {
	case stepClone:
		return j.born(st.Node, from, j.sharing(st.From, st.Node), n, spare)
	case stepSibling, stepOrphan:
		if err := j.checkUnshared(st.Node); err != nil {
			return err
		}
		if st.Op == stepOrphan {
			return j.orphan(st, n, from, spare)
		}
		n.ExitSignal = 0 // the kernel wants it so: the child has the signal of its sibling
		return j.born(st.Node, from, unix.CLONE_PARENT, n, spare)
	case stepSetsid:
		p := j.byNode[st.Node]
		if _, err := p.call("setsid", unix.SYS_SETSID); err != nil {
			return err
		}
		return j.takeTerminal(p)
	case stepGroup:
		id := j.byNode[st.Group].pid
		if st.Group == seed {
			id = unix.Getpgrp()
		}
		_, err := j.byNode[st.Node].call(fmt.Sprintf("setpgid to %d", id), unix.SYS_SETPGID, 0, uint64(id))
		return err
	case stepEnd:
		return j.byNode[st.Node].kill(j.deadline)
	}
	return fmt.Errorf("restore: unknown step %d", st.Op)
}

// sharing is the clone flags for what the tasks of two nodes share.
func (j *job) sharing(parent, child int) (flags uint64) {
	threads := func(node int) []image.Thread {
		if node <= seed || node > len(j.m.Tasks) {
			return nil // not a task of the image
		}
		return j.m.Tasks[node-1].Threads
	}
	p, c := threads(parent), threads(child)
	if len(p) == 0 || len(c) == 0 {
		return 0
	}
	if p[0].FDTable == c[0].FDTable {
		flags |= unix.CLONE_FILES
	}
	if p[0].FS == c[0].FS {
		flags |= unix.CLONE_FS
	}
	return flags
}

// checkUnshared fails for a task that cannot be forked from its parent and shares something
// with it.
func (j *job) checkUnshared(node int) error {
	if node == seed || node > len(j.m.Tasks) {
		return nil
	}
	t := &j.m.Tasks[node-1]
	if j.sharing(pidNode(j.m.Tasks, t.PPID), node) == 0 {
		return nil
	}
	return &ImageError{int(t.PID), "it shares descriptors or directories with its parent but was not made in the parent's session, which this version cannot build"}
}

// born makes the process of a node.
func (j *job) born(nodeID int, from *proc, flags uint64, n node, spare *spares) error {
	if err := j.handOn(from, j.lent[nodeID], true); err != nil {
		return err
	}
	th, err := j.cloneAs(from, flags, n.ExitSignal, n.PID, spare)
	if err != nil {
		return err
	}
	p, err := j.adopt(nodeID, th)
	if err != nil {
		return err
	}
	return j.inherited(from, p, j.lent[nodeID])
}

// cloneAs is clone with an id of spare if id is 0.
func (j *job) cloneAs(from *proc, flags uint64, exitSignal, id int, spare *spares) (*ptrace.Thread, error) {
	if id != 0 {
		return j.clone(from, flags, exitSignal, id)
	}
	for {
		id, err := spare.next()
		if err != nil {
			return nil, err
		}
		th, err := j.clone(from, flags, exitSignal, id)
		var taken *PIDTakenError
		if !errors.As(err, &taken) {
			return th, err
		}
	}
}

// orphan makes a process whose parent is not the one that forks it: that one ends, and the
// heir, made a subreaper for the moment, inherits the child.
func (j *job) orphan(st step, n node, from *proc, spare *spares) error {
	heir := j.byNode[st.Heir]
	reaper := func(on uint64) error {
		if st.Heir == seed {
			return nil // it always is one
		}
		_, err := heir.call("become subreaper", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)
		return err
	}
	if err := reaper(1); err != nil {
		return err
	}
	if err := j.handOn(from, j.lent[st.Node], true); err != nil {
		return err
	}
	th, err := j.cloneAs(from, 0, int(unix.SIGCHLD), 0, spare)
	if err != nil {
		return err
	}
	between, err := j.adopt(-th.TID, th) // it has no node
	if err != nil {
		return err
	}
	if err := j.inherited(from, between, j.lent[st.Node]); err != nil {
		return err
	}
	if err := j.born(st.Node, between, 0, n, spare); err != nil {
		return err
	}
	if err := between.kill(j.deadline); err != nil {
		return err
	}
	return reaper(0)
}

// plainSignals undoes what let placeholders vanish.
func (j *job) plainSignals(p *proc) error {
	return p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_RT_SIGACTION, uint64(unix.SIGCHLD), b.Put(make([]byte, 32)).Addr(), 0, 8).Label("reset SIGCHLD")
	})
}

// endZombies lets the tasks end that had ended, the last ones first, and takes the signal
// that their parents get: the program has had it, or it is pending in the image.
func (j *job) endZombies() error {
	for i := len(j.m.Tasks) - 1; i >= 0; i-- {
		t := &j.m.Tasks[i]
		if t.State != image.TaskZombie {
			continue
		}
		p := j.byNode[i+1]
		if err := j.endZombie(p, t); err != nil {
			return fmt.Errorf("restore zombie %d: %w", t.PID, err)
		}
		parent := j.byNode[pidNode(j.m.Tasks, t.PPID)]
		if parent != nil && !parent.ended && t.ExitSignal > 0 {
			if err := dropSignals(parent); err != nil {
				return err
			}
		}
	}
	return nil
}

// pidNode returns the node of a task.
func pidNode(tasks []image.Task, pid int32) int {
	for i := range tasks {
		if tasks[i].PID == pid {
			return i + 1
		}
	}
	return seed
}

// endZombie ends a stub with a wait status. For a signal it kills itself by that signal, not
// dumpable, so that no core is written.
func (j *job) endZombie(p *proc, t *image.Task) error {
	th := p.threads[0]
	name := append([]byte(t.Comm), 0)
	err := p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, b.Put(name).Addr(), 0, 0, 0).Label("set its name")
		b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0).Label("forbid a core dump")
		b.Call(unix.SYS_CLOSE_RANGE, 0, ^uint64(0)>>32, 0).Label("close its descriptors")
	})
	if err != nil {
		return err
	}
	p.ended = true
	ws := unix.WaitStatus(t.ExitStatus)
	if !ws.Signaled() {
		_, err = p.rem.Syscall(unix.SYS_EXIT_GROUP, uint64(ws.ExitStatus()))
	} else {
		err = dieOf(th, p.pid, ws.Signal())
	}
	var gone *ptrace.GoneError
	if err != nil && !errors.As(err, &gone) { // it is gone as it should be
		p.ended = false
		return err
	}
	err = waitEnd(th, j.deadline)
	if ws.CoreDump() {
		j.warn("zombie %d: its wait status says that it dumped core; it does not say so any more", p.pid)
	}
	return errors.Join(err, p.rem.Close())
}

// dieOf lets a stub be killed by a signal.
func dieOf(th *ptrace.Thread, pid int, sig unix.Signal) error {
	if err := unix.Kill(pid, sig); err != nil {
		return err
	}
	if err := th.SetSigMask(0); err != nil {
		return err
	}
	return th.Cont(0)
}

// dropSignals throws away what is pending in a stub: signals that the building of the tree
// has caused. Those of the image come later.
func dropSignals(p *proc) error {
	all := make([]byte, 8)
	le.PutUint64(all, ^uint64(0))
	for {
		var got *ptrace.Ret
		err := p.batch(func(b *ptrace.Batch) {
			got = b.Call(unix.SYS_RT_SIGTIMEDWAIT, b.Put(all).Addr(), 0, b.Alloc(16).Addr(), 8).Ignore()
		})
		if err != nil {
			return fmt.Errorf("restore pid %d: %w", p.pid, err)
		}
		if errors.Is(got.Err(), unix.EAGAIN) {
			return nil
		}
		if got.Err() != nil && !errors.Is(got.Err(), unix.EINTR) {
			return fmt.Errorf("restore pid %d: drop pending signals: %w", p.pid, got.Err())
		}
	}
}
