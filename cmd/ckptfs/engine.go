package main

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/restore"
)

// engine is packages ckpt and restore as the filesystem wants them.
type engine struct {
	steps    *steplog.Log // may be nil
	lazyRate int64        // how many bytes a second come in the background at most; 0: no bound
}

var _ fusefs.Engine = engine{}

func (e engine) Take(ctx context.Context, pid int, o fusefs.TakeOptions) (fusefs.Checkpoint, error) {
	co := ckpt.Options{Version: version, Log: o.Log, Policy: o.Policy, Steps: e.steps}
	if t, ok := o.Track.(tracker); ok {
		co.Track = t.Tracker
	}
	return checkpoint(ckpt.Take(ctx, pid, co))
}

// tracker is a ckpt.Tracker as the filesystem wants it.
type tracker struct{ *ckpt.Tracker }

func (t tracker) Info() fusefs.TrackInfo { return fusefs.TrackInfo(t.Tracker.Info()) }

func (engine) NewTracker() fusefs.Tracker { return tracker{ckpt.NewTracker()} }

func (engine) Estimate(pid int) (int64, error) {
	n, err := ckpt.Estimate(pid)
	return n, withErrno(err)
}

func (engine) Explain(pid int, p policy.Set) ([]image.Finding, error) {
	found, err := ckpt.Explain(pid, p)
	return found, withErrno(err)
}

func (engine) Tree(pid int) ([]int, error) {
	pids, err := ckpt.Tree(pid)
	return pids, withErrno(err)
}

func (e engine) Freeze(ctx context.Context, pid int) (fusefs.Frozen, error) {
	z, err := ckpt.Freeze(ctx, pid, ckpt.Options{Steps: e.steps})
	if err != nil {
		return nil, withErrno(err)
	}
	return frozen{z, e.steps}, nil
}

func (e engine) Restore(ctx context.Context, r *image.Reader, o fusefs.RestoreOptions) (*fusefs.Restored, error) {
	ro := restore.Options{OutPath: o.OutPath, CallerUID: o.CallerUID, Log: o.Log, Policy: o.Policy, Steps: e.steps}
	if end, ok := ctx.Deadline(); ok {
		ro.Timeout = time.Until(end)
	}
	ro.Lazy = lazySource(o.Lazy, e.lazyRate)
	if t, ok := o.Template.(*restore.Template); ok {
		ro.Template = t
	}
	res, err := restore.Run(ctx, r, ro)
	if err != nil {
		if o.Lazy != nil {
			o.Lazy.Release() // also if no page server came so far as to do it
		}
		return nil, withErrno(err)
	}
	return &fusefs.Restored{Root: res.Root, PIDs: res.PIDs, Warnings: res.Warnings, Lost: res.Lost, Shared: res.Shared}, nil
}

func (e engine) Template(ctx context.Context, r *image.Reader) (fusefs.Template, error) {
	o := restore.Options{Steps: e.steps}
	if end, ok := ctx.Deadline(); ok {
		o.Timeout = time.Until(end)
	}
	t, err := restore.NewTemplate(ctx, r, o)
	if err != nil {
		return nil, withErrno(err)
	}
	return t, nil
}

// frozen is a tree that is held still.
type frozen struct {
	*ckpt.Frozen
	steps *steplog.Log
}

func (z frozen) Take(ctx context.Context, o fusefs.TakeOptions) (fusefs.Checkpoint, error) {
	return checkpoint(z.Frozen.Take(ctx, ckpt.Options{Version: version, Log: o.Log, Policy: o.Policy, Steps: z.steps}))
}

// checkpoint avoids the interface that is not nil although it holds a nil pointer.
func checkpoint(c *ckpt.Checkpoint, err error) (fusefs.Checkpoint, error) {
	if err != nil {
		return nil, withErrno(err)
	}
	return c, nil
}

// errnoError gives an error of the engine the errno that fusefs answers with.
type errnoError struct {
	error
	errno syscall.Errno
}

func (e errnoError) Unwrap() error        { return e.error }
func (e errnoError) Errno() syscall.Errno { return e.errno }

// withErrno chooses the errno of the engine's own errors. For all others fusefs has its own
// table, which also finds an errno anywhere in the chain.
func withErrno(err error) error {
	if e := engineErrno(err); e != 0 {
		return errnoError{err, e}
	}
	return err
}

func engineErrno(err error) syscall.Errno {
	var (
		traced  *ptrace.TracedError
		slow    *ptrace.TimeoutError
		gone    *ptrace.GoneError
		seccomp *ptrace.SeccompError
		taken   *restore.PIDTakenError
		file    *restore.FileError
		host    *restore.HostError
		access  *restore.AccessError
		bad     *restore.ImageError
		late    *ckpt.LazyError
		sys     syscall.Errno
	)
	switch {
	case errors.Is(err, ckpt.ErrNoProcess), errors.Is(err, ckpt.ErrZombie), errors.Is(err, ckpt.ErrThread):
		return syscall.ESRCH
	case errors.Is(err, ckpt.ErrKernelThread):
		return syscall.EOPNOTSUPP
	case errors.Is(err, ckpt.ErrInit):
		return syscall.EPERM
	case errors.Is(err, ckpt.ErrSelf):
		return syscall.EDEADLK
	case errors.As(err, &traced):
		return syscall.EBUSY
	case errors.As(err, &slow), errors.As(err, &late), errors.Is(err, restore.ErrTimeout):
		return syscall.ETIMEDOUT
	case errors.As(err, &gone):
		return syscall.ESRCH
	case errors.As(err, &taken):
		return syscall.EEXIST
	case errors.As(err, &access), errors.As(err, &seccomp):
		return syscall.EPERM
	case errors.Is(err, restore.ErrNoTemplate):
		return syscall.EOPNOTSUPP
	case errors.As(err, &bad):
		return syscall.EBADMSG
	case errors.As(err, &sys):
		return 0
	case errors.As(err, &file):
		return syscall.ESTALE
	case errors.As(err, &host):
		return syscall.EOPNOTSUPP
	}
	return 0
}
