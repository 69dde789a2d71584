package ckpt

import (
	"errors"
	"fmt"
)

// Why a process cannot be the root of a checkpoint. errors.Is finds them in a TargetError.
var (
	ErrNoProcess    = errors.New("no such process")
	ErrKernelThread = errors.New("it is a kernel thread")
	ErrInit         = errors.New("it is init, the ancestor of every process")
	ErrThread       = errors.New("it is one thread of a process")
	ErrSelf         = errors.New("the tree contains ckptfs itself")
	ErrZombie       = errors.New("it has exited and waits to be reaped by its parent")
)

// TargetError says that pid cannot be checkpointed at all, whatever its state.
type TargetError struct {
	PID    int
	Err    error  // one of the Err values of this package, or what the kernel said
	Remedy string // a clause
}

// Error is the sentence for the user.
func (e *TargetError) Error() string {
	s := fmt.Sprintf("cannot checkpoint pid %d: %v", e.PID, e.Err)
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap returns Err.
func (e *TargetError) Unwrap() error { return e.Err }
