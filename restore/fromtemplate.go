package restore

import (
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// tracer is who traces the processes: with a template the one that made it, since only that can have it fork.
func (j *job) tracer() *ptrace.Tracer {
	if t := j.opt.Template; t != nil {
		return t.tr
	}
	return ptrace.NewTracer()
}

// borrow uses a template of the same image, if there is one.
func (j *job) borrow(pl *plan) {
	t := j.opt.Template
	switch {
	case t == nil:
	case t.root != j.r.Root() || t.hole != j.hole:
		j.log("the template is one of another image; the memory is copied")
	case t.Gone():
		j.log("the template, pid %d, is gone; the memory is copied", t.PID())
	default:
		j.tmpl, j.lent = t, lendings(t.areas, pl)
	}
}

// plantShared makes the seed of a template, whose memory it shares. It reports whether there is one; if not, all is as it was.
func (j *job) plantShared() (bool, error) {
	t := j.tmpl
	if t == nil {
		return false, nil
	}
	if err := j.takeNext(t); err != nil {
		j.log("the template, pid %d, cannot be used, so the memory is copied: %v", t.PID(), err)
		for _, p := range j.procs {
			if err := p.kill(j.deadline); err != nil {
				return false, err
			}
		}
		j.tmpl, j.lent, j.procs, j.standBy = nil, nil, nil, nil
		delete(j.byNode, seed)
		return false, nil
	}
	return true, j.fitRegisters(t.xstate)
}

// handOn lets the children that p makes from now on inherit areas of the template, or no longer.
func (j *job) handOn(p *proc, areas []int, on bool) error {
	advice := uint64(unix.MADV_DONTFORK)
	if on {
		advice = unix.MADV_DOFORK
	}
	f := &feeder{p: p}
	for _, i := range areas {
		b, err := f.batch()
		if err != nil {
			return err
		}
		advise(b, &j.tmpl.areas[i].v, advice)
	}
	return f.flush()
}

// inherited notes which areas a process was born with. Its parent keeps them from the next one, and it from its own children.
func (j *job) inherited(parent, p *proc, areas []int) error {
	p.areas = areas
	if err := j.handOn(parent, areas, false); err != nil {
		return err
	}
	return j.handOn(p, areas, false)
}

// ownAreas returns those of the areas that a process was born with that are its own: the others were for its children.
func (j *job) ownAreas(p *proc) (own []int) {
	for _, i := range p.areas {
		if j.tmpl.areas[i].node == p.node {
			own = append(own, i)
		}
	}
	return own
}

// keepShared is what stays of the address space of a process when it is cleared.
func (j *job) keepShared(p *proc) (keep []span) {
	for _, i := range j.ownAreas(p) {
		keep = append(keep, span{j.tmpl.areas[i].v.Start, j.tmpl.areas[i].v.End})
	}
	return keep
}

// settleShared brings what a process was born with to its place.
func (j *job) settleShared(p *proc) error {
	own := j.ownAreas(p)
	if len(own) == 0 {
		return nil
	}
	p.shared = map[uint64]bool{}
	f := &feeder{p: p}
	for _, i := range own {
		a := &j.tmpl.areas[i]
		b, err := f.batch()
		if err != nil {
			return err
		}
		advise(b, &a.v, unix.MADV_DOFORK)
		if n := a.v.End - a.v.Start; a.v.Start != a.start {
			b.Call(unix.SYS_MREMAP, a.v.Start, n, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, a.start).Label(fmt.Sprintf("move %#x-%#x to %#x", a.v.Start, a.v.End, a.start))
		}
		p.shared[a.start] = true
		j.sharedBytes += stored(&a.v)
	}
	if err := f.flush(); err != nil {
		return err
	}
	if len(p.areas) > len(own) { // VmHWM counts what was for its children
		const resetPeak = "5"
		if err := os.WriteFile(procPath(p.pid, "clear_refs"), []byte(resetPeak), 0); err != nil {
			return fmt.Errorf("restore pid %d: %w", p.pid, err)
		}
	}
	return nil
}

// has reports whether a VMA is there and filled, since a template had it.
func (p *proc) has(v *image.VMA) bool { return p.shared[v.Start] }
