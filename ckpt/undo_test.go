package ckpt

import (
	"errors"
	"slices"
	"testing"
)

func TestUndoRunsBackwardsAndGoesOnAfterErrors(t *testing.T) {
	var u undoStack
	var order []int
	bad := errors.New("bad")
	for i := range 3 {
		u.push("undo", i, nil, func() error {
			order = append(order, i)
			if i == 1 {
				return bad
			}
			return nil
		})
	}
	if err := u.run(); !errors.Is(err, bad) {
		t.Errorf("run() = %v, want it to wrap %v", err, bad)
	}
	if want := []int{2, 1, 0}; !slices.Equal(order, want) {
		t.Errorf("undone in the order %v, want %v", order, want)
	}
	if err := u.run(); err != nil || len(order) != 3 {
		t.Errorf("second run() = %v after %v, want nothing to happen", err, order)
	}
}
