package ckpt

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// retries is how often a checkpoint starts anew when the tree changed its mappings or files in
// the moment between look and freeze.
const retries = 4

// errRaced says that the target changed between look and freeze.
var errRaced = errors.New("it changed while it was looked at")

// racedError is an error that the target may have brought about between look and freeze.
type racedError struct{ error }

func (e racedError) Unwrap() []error { return []error{e.error, errRaced} }

// opened returns err as a racedError if it refuses nothing but descriptors, which the look
// before did not: as a rule they are closed again as fast as they were opened.
func opened(err error) error {
	var r *image.RefusedError
	if !errors.As(err, &r) || slices.ContainsFunc(r.Findings, func(f image.Finding) bool { return f.FD == image.NoFD }) {
		return err
	}
	return racedError{err}
}

// takeSteady takes a checkpoint, anew if the tree changes too much meanwhile.
func takeSteady(ctx context.Context, pid int, o Options) (*Checkpoint, error) {
	start := time.Now()
	pause := firstPause
	for try := 1; ; try++ {
		c, err := take(ctx, pid, o)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, errPolicies) && !o.policies:
			o.policies = true
			continue
		case errors.Is(err, errUnsure) && !o.run.fork:
			o.run.unsure()
			continue
		case errors.Is(err, errRaced) && try < retries:
		case inVfork(err) && time.Since(start) < o.Timeout:
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		}
	}
}

// How long a tree is left alone between two tries.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = time.Second
)

// inVfork reports whether a tree could not be stopped because somebody waits in vfork(2),
// which as a rule ends soon: the child execs.
func inVfork(err error) bool {
	var late *ptrace.TimeoutError
	return errors.As(err, &late) && late.VFork
}
