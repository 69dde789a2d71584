package ckpt

import (
	"errors"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
)

// undoStack holds what must be undone in live processes, last first. Every step that touches
// a target pushes its undo before or together with the step.
type undoStack struct {
	op *steplog.Op // may be nil

	mu    sync.Mutex
	steps []undoStep
}

// undoStep undoes one thing, which is named with the process or thread that it is about.
type undoStep struct {
	name string
	id   int
	on   *ptrace.Tracer // that has to do it; nil: whoever runs the stack
	f    func() error
}

// push adds an undo, which on has to carry out. It must be harmless if the step it undoes did not happen.
// Steps of the same name and different tracers must not depend on each other: they are undone
// at the same time if nothing else was pushed between them.
func (u *undoStack) push(name string, id int, on *ptrace.Tracer, f func() error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.steps = append(u.steps, undoStep{name, id, on, f})
}

// run undoes everything, last step first, and goes on after errors: the more is undone the
// better for the target. It returns what failed. A second call does nothing.
func (u *undoStack) run() error {
	u.mu.Lock()
	steps := u.steps
	u.steps = nil
	u.mu.Unlock()
	var errs []error
	for len(steps) > 0 {
		first := len(steps) - 1
		for first > 0 && steps[first-1].name == steps[first].name {
			first--
		}
		errs = append(errs, u.runAtOnce(steps[first:]))
		steps = steps[:first]
	}
	return errors.Join(errs...)
}

// runAtOnce undoes steps of one name: each tracer does its own, last first.
func (u *undoStack) runAtOnce(steps []undoStep) error {
	var ts tracers
	by := map[*ptrace.Tracer][]undoStep{}
	for _, st := range steps {
		if st.on != nil && by[st.on] == nil {
			ts.all = append(ts.all, st.on)
		}
		by[st.on] = append(by[st.on], st)
	}
	err := u.runBack(by[nil])
	return errors.Join(err, ts.each(func(t *ptrace.Tracer) error { return u.runBack(by[t]) }))
}

// runBack undoes steps on this thread.
func (u *undoStack) runBack(steps []undoStep) error {
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		st := steps[i]
		if err := u.op.Do(st.name, st.id, st.f); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
