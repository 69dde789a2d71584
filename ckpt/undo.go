package ckpt

import "errors"

// undoStack holds what must be undone in a live process, last first. Every step that touches
// a target pushes its undo before or together with the step.
type undoStack struct {
	steps []func() error
}

// push adds an undo. It must be harmless if the step it undoes did not happen.
func (u *undoStack) push(f func() error) { u.steps = append(u.steps, f) }

// run undoes everything, last step first, and goes on after errors: the more is undone the
// better for the target. It returns what failed. A second call does nothing.
func (u *undoStack) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](); err != nil {
			errs = append(errs, err)
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}
