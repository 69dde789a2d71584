package ckpt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/lazymem"
)

// LazyError says that memory of a process that was restored lazily did not come in time.
type LazyError struct {
	Status lazymem.Status
	Waited time.Duration
}

// Error says whom it waited for, and where to look.
func (e *LazyError) Error() string {
	return fmt.Sprintf("%v: it was restored lazily, and its memory has not come within %v; page server %d logs to %s, try again later",
		&e.Status, e.Waited.Round(time.Second), e.Status.Server, e.Status.Log)
}

// Unwrap makes it a timeout.
func (e *LazyError) Unwrap() error { return os.ErrDeadlineExceeded }

// How long memory may take to come: as a copy from a slow disk.
const (
	lazyPatience  = time.Minute
	lazyPerSecond = 32 << 20
)

// awaitMemory waits until no process of a tree misses memory any more. A copy-on-write child, as a
// checkpoint makes it, would see zeros for what is missing.
func awaitMemory(ctx context.Context, pids []int, log func(string)) error {
	servers := lazymem.Serving(ctx, pids)
	for i := range servers {
		begun := time.Now()
		s := &servers[i]
		if log != nil {
			log(fmt.Sprintf("waiting for memory of a lazy restore: %v", s))
		}
		limit := lazyPatience + time.Duration(s.Missing/lazyPerSecond)*time.Second
		wait, cancel := context.WithTimeout(ctx, limit)
		last, err := lazymem.Wait(wait, s)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return &LazyError{*s, time.Since(begun)}
		default:
			return fmt.Errorf("wait for memory of %v: %w", s, err)
		}
		if last != nil && last.Failed > 0 && log != nil {
			log(fmt.Sprintf("%d bytes of memory could not be had in a lazy restore, see %s", last.Failed, last.Log))
		}
	}
	return nil
}

// withoutLazy takes out of findings that memory of a process is still to come: a checkpoint waits for it.
func withoutLazy(findings []image.Finding) []image.Finding {
	isLazy := func(f image.Finding) bool { return f.Kind == refusedFlags["um"][0] }
	var pids []int
	for _, f := range findings {
		if isLazy(f) {
			pids = append(pids, int(f.PID))
		}
	}
	if pids == nil {
		return findings
	}
	servers := lazymem.Serving(context.Background(), pids)
	return slices.DeleteFunc(findings, func(f image.Finding) bool {
		return isLazy(f) && slices.ContainsFunc(servers, func(s lazymem.Status) bool { return slices.Contains(s.PIDs, int(f.PID)) })
	})
}

// yetToCome is how much memory of some processes is still to come.
func yetToCome(pids []int) (n int64) {
	for _, s := range lazymem.Serving(context.Background(), pids) {
		n += s.Missing
	}
	return n
}
