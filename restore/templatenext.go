package restore

import (
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// Even the copying of page tables, 12 ms for 1 GiB, is done before a restore asks for it: by a process that stands by.

// next is what a template holds ready for the next restore.
type next struct {
	seed    *proc // shares the memory of the template
	standBy *proc // its child, with the copy of that memory that will be the root's
}

// makeNext makes these two. It runs on the tracing thread.
func (t *Template) makeNext(deadline time.Time) error {
	j := &job{hole: t.hole, byNode: map[int]*proc{}, tmpl: t, deadline: deadline}
	err := j.makeNext(t)
	if err != nil {
		t.next = nil
		for _, p := range j.procs {
			err = errors.Join(err, p.kill(time.Now().Add(killPatience)))
		}
	}
	return err
}

func (j *job) makeNext(t *Template) error {
	spare, err := newSpares(t.want)
	if err != nil {
		return err
	}
	th, err := j.cloneAs(t.proc, unix.CLONE_VM, int(unix.SIGCHLD), 0, spare)
	if err != nil {
		return err
	}
	s, err := j.adopt(seed, th)
	if err != nil {
		return err
	}
	if _, err := s.call("become subreaper", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	for i := range t.areas {
		s.areas = append(s.areas, i)
	}
	if err := j.handOn(s, s.areas, true); err != nil {
		return err
	}
	if th, err = j.cloneAs(s, 0, int(unix.SIGCHLD), 0, spare); err != nil {
		return err
	}
	x, err := j.adopt(-th.TID, th) // it has no node
	if err != nil {
		return err
	}
	t.next = &next{s, x}
	return j.inherited(s, x, s.areas)
}

// takeNext gives a job what stands by.
func (j *job) takeNext(t *Template) error {
	if t.next == nil {
		if err := t.makeNext(j.deadline); err != nil {
			return err
		}
	}
	n := t.next
	t.next = nil
	j.procs = append(j.procs, n.seed, n.standBy)
	j.byNode[seed], j.standBy = n.seed, n.standBy
	for _, p := range []*proc{n.seed, n.standBy} {
		if err := j.lendChannel(p); err != nil {
			return err
		}
	}
	return nil
}

// lendChannel gives a process that has no descriptors the stubs' end of the channel, as number 0.
func (j *job) lendChannel(p *proc) error {
	num, err := kind.Lend(remoteProcess{j, p, p.pid}, j.channel[1])
	if err != nil {
		return fmt.Errorf("restore: hand the channel to the stub: %w", err)
	}
	if num == 0 {
		return nil
	}
	return p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_DUP3, num, 0, unix.O_CLOEXEC).Label("place the channel")
		b.Call(unix.SYS_CLOSE, num).Label("place the channel")
	})
}

// bornOfStandBy makes the root, if it is to be a child of the seed, by a clone(2) that shares the memory of the
// process that stands by: with the end of that one it is the root's alone. If the root gets its session from a placeholder, that
// is made so, too, and the root by it. It reports whether it could.
func (j *job) bornOfStandBy(st step, n node, spare *spares) (bool, error) {
	root := st.Node == seed+1
	if j.standBy == nil || n.ExitSignal != int(unix.SIGCHLD) { // the signal is that of the sibling
		return false, nil
	}
	from := j.standBy
	switch {
	case st.Op == stepClone && st.From == seed && (root || n.Task < 0):
	case st.Op == stepSibling && root && j.byNode[st.From].sibling:
		from = j.byNode[st.From]
	default:
		return false, nil
	}
	th, err := j.cloneAs(from, unix.CLONE_VM|unix.CLONE_PARENT, 0, n.PID, spare)
	if err != nil {
		return false, err
	}
	p, err := j.adopt(st.Node, th)
	if err != nil {
		return false, err
	}
	p.areas, p.sibling = j.standBy.areas, true
	if !root {
		return true, nil
	}
	return true, j.endStandBy()
}

// endStandBy ends the process that stands by, if there still is one.
func (j *job) endStandBy() error {
	if j.standBy == nil {
		return nil
	}
	x := j.standBy
	j.standBy = nil
	return x.kill(j.deadline)
}

// giveBack ends the use of a template, and has it prepare for the next restore before anybody gets it.
func (t *Template) giveBack() {
	go func() {
		defer t.release()
		if t.Gone() {
			return
		}
		const patience = 10 * time.Second
		_ = t.tr.Do(func() error { return t.makeNext(time.Now().Add(patience)) }) // without it the next one takes longer
	}()
}

// endNext ends what stands by.
func (t *Template) endNext(deadline time.Time) error {
	if t.next == nil {
		return nil
	}
	n := t.next
	t.next = nil
	return errors.Join(n.standBy.kill(deadline), n.seed.kill(deadline))
}
