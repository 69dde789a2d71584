package ckpt

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
)

// Semaphore sets and message queues of System V know no maker. One belongs to a tree if a living
// process of the tree was the last to change a semaphore of it (semop(2), SETVAL, SETALL), or to send or
// receive a message, or waits in it. If a living process outside of the tree did or does any of that too, it is
// refused. What nobody who lives has used is nobody's, and not kept; if it was made since the tree began, by a user
// of whom only the tree has processes, that is on the list of losses.
//
// A process with SEM_UNDO adjustments in a set uses it, whoever was the last.

// ipcUse is who used an object of System V last, or waits in it.
type ipcUse struct {
	pids []int32
	at   int64 // when it was used or changed last, in seconds
	wait sysv.Wait
}

// objects are the semaphore sets and message queues of this machine.
type objects struct {
	sems []sysv.Sem
	msgs []sysv.Msg
}

func readObjects() (o objects, err error) {
	if o.sems, err = sysv.ReadSem(); err == nil {
		o.msgs, err = sysv.ReadMsg()
	}
	return o, err
}

// semUse tells of a set. Who used one before the tree began, in seconds, is only asked if somebody of it waits there: it
// takes a system call for each semaphore.
func semUse(s *sysv.Sem, began int64, waiting map[sysv.Wait]int) (ipcUse, error) {
	u := ipcUse{at: max(s.OTime, s.CTime), wait: sysv.Wait{ID: s.ID}}
	if u.at+1 < began && waiting[u.wait] == 0 {
		return u, nil
	}
	pids, err := sysv.LastPIDs(s.ID, s.N)
	slices.Sort(pids)
	u.pids = slices.Compact(pids)
	return u, err
}

func msgUse(q *sysv.Msg) ipcUse {
	return ipcUse{[]int32{int32(q.LSPID), int32(q.LRPID)}, q.At(), sysv.Wait{Queue: true, ID: q.ID}}
}

// checkIPC finds what of the tree's semaphore sets and message queues cannot be kept.
func (s *survey) checkIPC() error {
	o, err := readObjects()
	if err != nil {
		return err
	}
	if len(o.sems)+len(o.msgs) == 0 {
		return nil
	}
	began := int64(math.MaxInt64)
	for _, l := range s.procs {
		began = min(began, sysv.Started(&l.stat))
	}
	w := waiters{sysv.Waiting(s.pids()), sync.OnceValue(func() map[sysv.Wait]int { return sysv.Waiting(s.out.others()) })}
	for i := range o.sems {
		if u, err := semUse(&o.sems[i], began, w.mine); err == nil { // or it has been removed
			s.checkObject("SysV semaphore set", &o.sems[i].Perm, u, o.sems[i].CTime, w)
		}
	}
	for i := range o.msgs {
		s.checkObject("SysV message queue", &o.msgs[i].Perm, msgUse(&o.msgs[i]), o.msgs[i].CTime, w)
	}
	return nil
}

// waiters are the processes that wait in objects: those of the tree, and others.
type waiters struct {
	mine   map[sysv.Wait]int
	theirs func() map[sysv.Wait]int
}

func (s *survey) checkObject(kind string, p *sysv.Perm, u ipcUse, ctime int64, w waiters) {
	mine, theirs := 0, 0
	for _, pid := range u.pids {
		switch {
		case s.madeBy(int(pid), u.at):
			mine = int(pid)
		case sysv.Lives(int(pid), u.at) && s.find(int(pid)) == nil:
			theirs = int(pid)
		}
	}
	if mine == 0 {
		mine = w.mine[u.wait]
	}
	f := image.Finding{PID: int32(mine), FD: image.NoFD, Kind: kind}
	if mine == 0 {
		if theirs == 0 && s.mayHaveMade(p, ctime) && w.theirs()[u.wait] == 0 {
			f.PID, f.Severity = int32(s.root), image.Lose
			f.What = fmt.Sprintf("number %d (key %#x) was made by uid %d since the tree began, and nobody who lives has used it, so that it is not known whose it is", p.ID, uint32(p.Key), p.CUID)
			f.Remedy = "none is needed if it is another program's, or is there at the restore"
			s.findings = append(s.findings, f)
		}
		return
	}
	if theirs == 0 {
		theirs = w.theirs()[u.wait]
	}
	if theirs != 0 {
		f.Severity = image.Refuse
		f.What = fmt.Sprintf("pid %d, which is outside the tree, uses number %d (key %#x) too", theirs, p.ID, uint32(p.Key))
		f.Remedy = fmt.Sprintf("checkpoint a tree that holds pid %d too", theirs)
		s.findings = append(s.findings, f)
	}
}

// mayHaveMade reports whether an object was made by a process of the tree, as far as anybody can tell.
func (s *survey) mayHaveMade(p *sysv.Perm, ctime int64) bool {
	if !sysv.StartedBefore(&s.procs[0].stat, ctime-1) {
		return false
	}
	if !slices.ContainsFunc(s.procs, func(l *looked) bool { return !l.zombie() && l.status.Uid[1] == p.CUID }) {
		return false
	}
	return !slices.ContainsFunc(s.out.others(), func(pid int) bool {
		st, err := readStatus(pid)
		return err == nil && st.Uid[1] == p.CUID
	})
}

// waiting is sysv.Waiting for the frozen tree.
func (c *Checkpoint) waiting() map[sysv.Wait]int {
	all := map[sysv.Wait]int{}
	for _, p := range c.procs {
		for _, th := range p.threads {
			if w, ok := sysv.WaitOf(int64(th.state.Regs.Orig_rax), th.state.Regs.Rdi); ok {
				all[w] = p.pid
			}
		}
	}
	return all
}

// owns reports whether an object belongs to the frozen tree.
func (c *Checkpoint) owns(u ipcUse, waiting map[sysv.Wait]int) bool {
	return waiting[u.wait] != 0 || slices.ContainsFunc(u.pids, func(pid int32) bool { return c.madeBy(int(pid), u.at) })
}

// captureIPC reads the semaphore sets and message queues of the tree.
func (c *Checkpoint) captureIPC() error {
	o, err := readObjects()
	if err != nil {
		return err
	}
	if len(o.sems)+len(o.msgs) == 0 {
		return nil
	}
	waiting := c.waiting()
	undo, err := c.readUndo(o.sems)
	if err != nil {
		return err
	}
	began := int64(math.MaxInt64)
	for _, p := range c.procs {
		began = min(began, sysv.Started(&p.stat))
	}
	for i := range o.sems {
		s := &o.sems[i]
		u, err := semUse(s, began, waiting)
		if err != nil || !c.owns(u, waiting) && undo[s.ID] == nil {
			continue // or it has just been removed, by somebody outside
		}
		if err := c.checkUndo(s, u, undo[s.ID]); err != nil {
			return err
		}
		set, err := captureSem(s)
		if err != nil {
			return fmt.Errorf("pid %d: %w", c.procs[0].pid, err)
		}
		set.Undo = undo[s.ID]
		c.m.SemSets = append(c.m.SemSets, set)
	}
	for i := range o.msgs {
		q := &o.msgs[i]
		if !c.owns(msgUse(q), waiting) {
			continue
		}
		queue, err := c.captureMsg(q)
		if err != nil {
			return fmt.Errorf("pid %d: %w", c.procs[0].pid, err)
		}
		c.m.MsgQueues = append(c.m.MsgQueues, queue)
	}
	return nil
}

// checkUndo refuses a set in which the tree has adjustments and that somebody outside used last.
func (c *Checkpoint) checkUndo(s *sysv.Sem, u ipcUse, undo []image.SemUndo) error {
	for _, pid := range u.pids {
		if len(undo) > 0 && sysv.Lives(int(pid), u.at) && !slices.ContainsFunc(c.procs, func(p *proc) bool { return p.pid == int(pid) }) {
			return undoRefused(int(undo[0].PID), fmt.Sprintf("it has an adjustment (SEM_UNDO) in the set %d, which pid %d outside the tree uses too", s.ID, pid))
		}
	}
	return nil
}

func captureSem(s *sysv.Sem) (image.SemSet, error) {
	set := image.SemSet{Perm: permOf(&s.Perm), Used: s.OTime != 0, Sems: make([]image.Semaphore, s.N)}
	values, err := sysv.Values(s.ID, s.N)
	if err != nil {
		return set, err
	}
	pids, err := sysv.LastPIDs(s.ID, s.N)
	if err != nil {
		return set, err
	}
	for i := range set.Sems {
		set.Sems[i] = image.Semaphore{Value: uint32(values[i]), PID: pids[i]}
	}
	return set, nil
}

func (c *Checkpoint) captureMsg(q *sysv.Msg) (image.MsgQueue, error) {
	queue := image.MsgQueue{Perm: permOf(&q.Perm), Count: uint32(q.Count), LSPID: int32(q.LSPID), LRPID: int32(q.LRPID)}
	var err error
	if queue.QBytes, err = sysv.QBytes(q.ID); err != nil || q.Count == 0 {
		return queue, err
	}
	all, err := sysv.Copy(q)
	if err == nil {
		queue.Blob = c.blob(sysv.Pack(all))
	}
	return queue, err
}

func permOf(p *sysv.Perm) image.IPCPerm {
	return image.IPCPerm{ID: p.ID, Key: p.Key, Mode: p.Mode & 0o777, UID: p.UID, GID: p.GID, CUID: p.CUID, CGID: p.CGID}
}
