package ckpt

import (
	"errors"
	"time"
)

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
	defer func() {
		if err == nil {
			p.trackNew()
		}
	}()
	if err := p.readAreas(!c.snapshots()); err != nil {
		return err
	}
	if err := p.readAIO(); err != nil {
		return err
	}
	maySkip := p.track != nil && p.track.overlay != nil && !c.o.run.fork // the snapshot, which tells of policies
	if err := p.readPolicies(c.o.policies || !c.snapshots() || maySkip); err != nil || !c.snapshots() {
		return err
	}
	if locked > 0 && !p.locksKnown(locked) {
		if err := p.readAreas(true); err != nil {
			return err
		}
		maySkip = false
	}
	if err := p.advanceTracked(); err != nil {
		return err
	}
	if err := p.copyFrozen(false); err != nil {
		return err
	}
	if maySkip {
		if done, err := p.copyChanged(c.o.run.base.r); err != nil || done {
			return err
		}
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
	p.track = nil
	if err := p.readAreas(true); err != nil {
		return err
	}
	if err := p.readPolicies(true); err != nil {
		return err
	}
	return p.copyFrozen(true)
}
