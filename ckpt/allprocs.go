package ckpt

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// allProcs calls f for each of n processes, on all processors, and returns what went wrong. After an error it begins
// with no more.
func allProcs(n int, f func(i int) error) error {
	workers := min(n, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for i := range n {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	}
	var next atomic.Int64
	var failed atomic.Bool
	errs := make([]error, n)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if errs[i] = f(i); errs[i] != nil {
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// parallel calls f for 0 to n-1 on all CPUs: a thousand descriptors are read in the freeze.
func parallel(n int, frozen bool, f func(i int)) {
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	var wg sync.WaitGroup
	for range min(runtime.NumCPU(), (n+15)/16) - 1 {
		wg.Go(func() {
			if frozen {
				ptrace.Hurried(work)
			} else {
				work()
			}
		})
	}
	work()
	wg.Wait()
}
