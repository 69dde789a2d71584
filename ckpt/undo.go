package ckpt

import (
	"errors"

	"github.com/ckptfs/ckptfs/ckpt/steplog"
)

// undoStack holds what must be undone in a live process, last first. Every step that touches
// a target pushes its undo before or together with the step.
type undoStack struct {
	steps []undoStep
	op    *steplog.Op // may be nil
}

// undoStep undoes one thing, which is named with the process or thread that it is about.
type undoStep struct {
	name string
	id   int
	f    func() error
}

// push adds an undo. It must be harmless if the step it undoes did not happen.
func (u *undoStack) push(name string, id int, f func() error) {
	u.steps = append(u.steps, undoStep{name, id, f})
}

// run undoes everything, last step first, and goes on after errors: the more is undone the
// better for the target. It returns what failed. A second call does nothing.
func (u *undoStack) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		st := u.steps[i]
		if err := u.op.Do(st.name, st.id, st.f); err != nil {
			errs = append(errs, err)
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}
