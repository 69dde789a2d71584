package ckpt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/uffd"
)

// armTimeout is how long a tree may take to stop so that tracking can begin.
const armTimeout = 2 * time.Second

// arm stops the tree for a moment and makes the userfaultfds of some of its processes. It returns those that
// it has made, also with an error.
func (c *Checkpoint) arm(ctx context.Context, s *survey, pids []int) (made []*tracked, err error) {
	step := c.op.Step("arm", s.root).Count("processes", int64(len(pids)))
	defer func() { step.End(err) }()
	err = c.tr.Do(func() error {
		defer c.tr.hurry()()
		undo := &undoStack{op: c.op}
		begun := time.Now()
		defer func() {
			c.log("pid %d: it was still for %.1f ms so that its writes can be tracked", s.root, float64(time.Since(begun).Microseconds())/1000)
		}()
		procs, err := freezeTree(ctx, c.tr, c.tr.divide(s.pids(), s.weight), s.root, time.Now().Add(armTimeout), undo)
		if err == nil {
			made, err = c.armFrozen(s, procs, pids, undo)
		}
		return join(err, undo.run())
	})
	if err != nil {
		err = fmt.Errorf("begin to track it: %w", err)
	}
	return made, err
}

// armFrozen makes the userfaultfds of processes that are stopped.
func (c *Checkpoint) armFrozen(s *survey, procs []*proc, pids []int, undo *undoStack) (made []*tracked, err error) {
	var mu sync.Mutex
	err = c.tr.each(func(t *ptrace.Tracer) error {
		for _, p := range procs {
			if p.tr != t || p.zombie() || !slices.Contains(pids, p.pid) {
				continue
			}
			p.looked = s.find(p.pid)
			one, err := c.armProc(p, undo)
			if err != nil {
				return err
			}
			mu.Lock()
			made = append(made, one)
			mu.Unlock()
		}
		return nil
	})
	return made, err
}

func (c *Checkpoint) armProc(p *proc, undo *undoStack) (_ *tracked, err error) {
	if p.remote, err = ptrace.NewRemote(p.pid); err != nil {
		return nil, err
	}
	undo.push("undo:calls", p.pid, p.tr, func() error { return ignoreGone(p.remote.Close()) })
	for _, th := range p.threads {
		if th.state, err = th.Capture(p.remote.Mem()); err != nil {
			return nil, err
		}
	}
	leader := p.threads[0]
	if err := p.remote.Enter(leader.Thread, leader.state); err != nil {
		return nil, err
	}
	fd, err := p.remote.UserFault(time.Now().Add(armTimeout))
	if err = errors.Join(err, p.remote.Leave()); err != nil {
		return nil, err
	}
	wp, err := newWriteTracking(uffd.FD(fd))
	if err != nil {
		return nil, err
	}
	t := &tracked{id: idOf(&p.stat), wp: wp}
	if err := t.register(p); err != nil {
		wp.close()
		return nil, err
	}
	return t, nil
}

// register begins to track what can be tracked of a process that stands still. (While it runs, a part of a
// mapping that is new could be taken for another one, and be split.)
func (t *tracked) register(p *proc) error {
	maps, err := procfs.ParseMaps(p.remote.Maps())
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	for i := range maps {
		a := p.looked.known(&maps[i])
		if a == nil || !trackable(a) {
			continue
		}
		if err := t.wp.register(a.Start, a.End); err != nil {
			return fmt.Errorf("pid %d: %w", p.pid, err)
		}
		t.owned = t.owned.add(a.Start, a.End)
	}
	t.fresh = t.owned
	return nil
}
