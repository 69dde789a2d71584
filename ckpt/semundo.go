package ckpt

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// maxProbed is in how many semaphores a process is asked for adjustments, which takes two system calls for each.
const maxProbed = 20000

// undone are the adjustments (SEM_UNDO) of the tree, by the set that they are of.
type undone map[int32][]image.SemUndo

// readUndo asks the processes of the tree for their adjustments in the semaphores that they may have used, by
// calls that never succeed (package sysv).
func (c *Checkpoint) readUndo(sems []sysv.Sem) (undone, error) {
	all := undone{}
	for _, p := range c.procs {
		var sets []*sysv.Sem
		n := 0
		for i := range sems {
			if s := &sems[i]; s.OTime != 0 && sysv.StartedBefore(&p.stat, s.OTime) {
				sets = append(sets, s)
				n += s.N
			}
		}
		if n == 0 {
			continue
		}
		has, err := task.HasUndoList(p.pid)
		if err != nil {
			return nil, fmt.Errorf("pid %d: %w", p.pid, err)
		}
		if !has {
			continue
		}
		if n > maxProbed {
			return nil, undoRefused(p.pid, fmt.Sprintf("it may have adjustments in any of %d semaphores, which are too many to ask for", n))
		}
		if err := p.tr.Do(func() error { return p.probeAll(sets, all) }); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func undoRefused(pid int, what string) error {
	return &image.RefusedError{Findings: []image.Finding{{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: "SysV semaphore undo",
		What: what, Remedy: "let the program release its semaphores first, or do without SEM_UNDO"}}}
}

// probeAll finds the adjustments of a process.
func (p *proc) probeAll(sets []*sysv.Sem, all undone) (err error) {
	leader := p.threads[0]
	if err := p.remote.Enter(leader.Thread, leader.state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remote.Leave()) }()
	for _, s := range sets {
		values, err := sysv.Values(s.ID, s.N)
		if err != nil {
			continue // it has just been removed
		}
		found, err := p.probeSet(s, values)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			continue
		}
		if again, err := sysv.Values(s.ID, s.N); err != nil || !slices.Equal(values, again) { // then the answers mean nothing
			return fmt.Errorf("pid %d: semaphores of the set %d were changed from outside the tree: %w", p.pid, s.ID, errRaced)
		}
		all[s.ID] = append(all[s.ID], found...)
	}
	return nil
}

// probeSet finds those in one set.
func (p *proc) probeSet(s *sysv.Sem, values []uint16) ([]image.SemUndo, error) {
	var asked []probe
	for i, v := range values {
		for _, k := range []int{1, -1} {
			asked = append(asked, probe{uint16(i), v, k})
		}
	}
	hit, err := p.probe(s, asked)
	if err != nil {
		return nil, err
	}
	var out []image.SemUndo
	for i, v := range values {
		if !hit[2*i] && !hit[2*i+1] {
			continue
		}
		adj, err := sysv.Search(func(k int) (bool, error) {
			hit, err := p.probe(s, []probe{{uint16(i), v, k}})
			return err == nil && hit[0], err
		})
		if err != nil {
			return nil, err
		}
		if adj != 0 {
			out = append(out, image.SemUndo{PID: int32(p.pid), Num: uint32(i), Adj: int32(adj)})
		}
	}
	return out, nil
}

// probe is one question, see sysv.Probe.
type probe struct {
	num, value uint16
	k          int
}

// probe asks, and returns the answers.
func (p *proc) probe(s *sysv.Sem, asked []probe) ([]bool, error) {
	const each = 72 + 48 // a call and its operations, in a batch
	hit := make([]bool, len(asked))
	for from := 0; from < len(asked); {
		b, err := p.remote.NewBatch()
		if err != nil {
			return nil, err
		}
		n := min(len(asked)-from, max(1, (b.Room()-1024)/each))
		rets := make([]*ptrace.Ret, n)
		for i := range n {
			q := asked[from+i]
			ops := sysv.Probe(q.num, q.value, q.k)
			rets[i] = b.Call(unix.SYS_SEMOP, uint64(s.ID), b.Put(sysv.Encode(ops)).Addr(), uint64(len(ops))).Ignore()
		}
		if err := b.Run(); err != nil {
			return nil, err
		}
		for i, r := range rets {
			switch err := r.Err(); {
			case errors.Is(err, unix.ERANGE):
				hit[from+i] = true
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EIDRM), errors.Is(err, unix.EINVAL): // no, or it has just been removed
			case errors.Is(err, unix.EACCES) && !p.usedLast(s): // it may not use it, and has not
			default:
				return nil, undoRefused(p.pid, fmt.Sprintf("whether it has adjustments in the set %d cannot be found out: %v", s.ID, err))
			}
		}
		from += n
	}
	return hit, nil
}

// usedLast reports whether the process was the last to change a semaphore of a set.
func (p *proc) usedLast(s *sysv.Sem) bool {
	pids, err := sysv.LastPIDs(s.ID, s.N)
	return err == nil && slices.Contains(pids, int32(p.pid))
}
