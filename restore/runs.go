package restore

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
)

// Most files have nothing to do with each other, and are checked and opened by as many threads as there are processors.

const (
	// longestRun is how many files are opened before they are put by, if there are numbers for so many.
	longestRun = 512
	// worthThread is for how many files a further thread is worth its start, and the credentials that it takes.
	worthThread = 32
)

// inRuns calls f with the files of a user, in their order: several that may be opened at the same time, or one.
func (j *job) inRuns(u *fileUser, refs []image.ObjRef, f func(run []image.ObjRef) error) error {
	for len(refs) > 0 {
		n := 0
		for n < min(len(refs), j.depot.hands) && j.independent(refs[n]) {
			n++
		}
		n = max(n, 1)
		if err := f(refs[:n]); err != nil {
			return err
		}
		refs = refs[n:]
	}
	return nil
}

func (j *job) independent(ref image.ObjRef) bool {
	rec := &j.m.Files[ref-1]
	k, ok := kind.ByName(rec.Kind).(kind.Independent)
	_, tty := j.ttys[ref]
	return ok && !tty && len(rec.Locks) == 0 && k.Independent(rec)
}

// atOnce calls f for 0 to n-1, on several threads with the credentials of a user, of which the caller's is one. The
// error is that of the lowest number that has one; what comes behind it may not have been called.
func (j *job) atOnce(u *fileUser, n int, f func(i int) error) error {
	errs := make([]error, n)
	var next, failed atomic.Int64
	failed.Store(int64(n))
	work := func() error {
		for i := next.Add(1) - 1; i < int64(n) && i < failed.Load(); i = next.Add(1) - 1 {
			if errs[i] = f(int(i)); errs[i] != nil {
				for low := failed.Load(); i < low && !failed.CompareAndSwap(low, i); low = failed.Load() {
				}
			}
		}
		return nil
	}
	var group sync.WaitGroup
	for range min(runtime.NumCPU(), (n+worthThread-1)/worthThread) - 1 {
		group.Go(func() { _ = asUser(u.creds, work) }) // without them the others do all
	}
	err := work()
	group.Wait()
	for i := range errs {
		if errs[i] != nil {
			return errs[i]
		}
	}
	return err
}
