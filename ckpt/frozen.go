package ckpt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"golang.org/x/sys/unix"
)

// Frozen is a tree that is held still until Thaw or Kill. If this process ends, however it
// ends, the kernel lets the tree go on.
type Frozen struct {
	root int
	tr   *tracers
	undo *undoStack
	all  []*proc
	lock *netlock.Lock // of TCP connections that the last checkpoint has
}

// Freeze stops the tree below pid and holds it. Of the options it needs Timeout and Steps.
func Freeze(ctx context.Context, pid int, o Options) (*Frozen, error) {
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	pids, err := Tree(pid)
	if err != nil {
		return nil, err
	}
	if err := refuseSelf(pid, pids); err != nil {
		return nil, err
	}
	z := &Frozen{root: pid, tr: newTracers(len(pids)), undo: &undoStack{op: o.Steps.Begin("hold")}}
	of := z.tr.divide(pids, func(int) int { return processWeight })
	err = z.tr.Do(func() error {
		defer z.tr.hurry()()
		var err error
		z.all, err = freezeTree(ctx, z.tr, of, pid, time.Now().Add(timeout), z.undo)
		if err != nil {
			return join(err, z.undo.run())
		}
		return nil
	})
	if err != nil {
		z.tr.Close()
		return nil, err
	}
	return z, nil
}

// PIDs lists the frozen processes, the root first.
func (z *Frozen) PIDs() []int {
	out := make([]int, len(z.all))
	for i, p := range z.all {
		out[i] = p.pid
	}
	return out
}

// Take takes a checkpoint of the frozen tree, which stays frozen. Options.After must be
// Resume. Sleeps that are cut short by the freeze are restored in full, since what was left
// of them cannot be read any more.
func (z *Frozen) Take(ctx context.Context, o Options) (*Checkpoint, error) {
	if o.After != Resume {
		return nil, errors.New("a tree that is held frozen is ended with Kill, not by its checkpoint")
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	raiseNoFile()
	op := o.Steps.Begin("dump")
	s, err := lookAccepted(ctx, op, z.root, o)
	if err != nil {
		return nil, err
	}
	o.policies = true // it is still anyway
	c := newCheckpoint(o, op, z.tr)
	if c.m.Host, err = hostInfo(s.root); err != nil {
		return c.complete(s, err)
	}
	c.sleepers, c.frozen = findSleepers(nil), true
	err = z.tr.Do(func() error {
		defer z.tr.lend()()
		undo := &undoStack{op: op}
		err := c.captureAll(ctx, s, z.all, undo)
		return join(err, undo.run())
	})
	if err == nil && c.lock != nil {
		z.lock, c.lock = c.lock, nil
	}
	return c.complete(s, err)
}

// Thaw lets the tree go on.
func (z *Frozen) Thaw() error {
	err := z.tr.Do(func() error { return z.undo.op.Do("resume", z.root, z.undo.run) })
	z.tr.Close()
	return errors.Join(err, z.lock.Back())
}

// Kill kills every process of the tree, none of which runs another instruction.
func (z *Frozen) Kill() error {
	if err := z.lock.Hold(); err != nil {
		return fmt.Errorf("keep the TCP connections of the image until its restore: %w; the tree is left as it is", err)
	}
	err := z.tr.Do(func() error {
		var errs []error
		for _, p := range z.all {
			if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("pid %d: SIGKILL: %w", p.pid, err))
			}
		}
		_ = z.undo.run() // they are dead: letting go of them fails, and need not succeed
		return errors.Join(errs...)
	})
	z.tr.Close()
	return err
}
