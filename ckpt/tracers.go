package ckpt

import (
	"errors"
	"runtime"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// A process belongs to the OS thread that has seized it: only that one can trace it. So that the
// processes of a large tree are captured at the same time, the tree is divided among several.

const (
	// mostTracers is how many threads trace a tree at most. More of them wait for the same locks of the kernel.
	mostTracers = 8
	// fewest is for how many processes a further tracer is worth its start.
	fewest = 3
)

// tracers are the tracing threads of a tree. The first one directs: freeze and capture run on it.
type tracers struct {
	all []*ptrace.Tracer
}

// newTracers starts tracing threads for a tree of so many processes.
func newTracers(processes int) *tracers {
	n := max(1, min(runtime.NumCPU(), mostTracers, processes/fewest))
	ts := &tracers{}
	for range n {
		ts.all = append(ts.all, ptrace.NewTracer())
	}
	return ts
}

// first is the tracer that directs.
func (ts *tracers) first() *ptrace.Tracer { return ts.all[0] }

// tids are the thread ids of them.
func (ts *tracers) tids() (all []int) {
	for _, t := range ts.all {
		all = append(all, t.TID())
	}
	return all
}

// Do runs f on the tracer that directs.
func (ts *tracers) Do(f func() error) error { return ts.first().Do(f) }

// Close ends all of them, which lets go of what they still have seized.
func (ts *tracers) Close() {
	for _, t := range ts.all {
		t.Close()
	}
}

// each runs f on each tracer, at the same time. The caller may be one of them.
func (ts *tracers) each(f func(t *ptrace.Tracer) error) error {
	return ts.spread(ts.all, f)
}

// spread runs f on some of the tracers at the same time, on that of the caller last: the others have begun by
// then.
func (ts *tracers) spread(on []*ptrace.Tracer, f func(t *ptrace.Tracer) error) error {
	errs := make([]error, len(on))
	var wg sync.WaitGroup
	here := -1
	for i, t := range on {
		if t.Here() {
			here = i
			continue
		}
		wg.Go(func() { errs[i] = t.Do(func() error { return f(t) }) })
	}
	if here >= 0 {
		errs[here] = f(on[here])
	}
	wg.Wait()
	return errors.Join(errs...)
}

// hurry is ptrace.Tracer.Hurry for all, and lets them sleep in their waits.
func (ts *tracers) hurry() (stop func()) {
	back := roomy(len(ts.all))
	unwatch := ptrace.Watch(ts.all...)
	calm := ts.undoable((*ptrace.Tracer).Hurry)
	return func() {
		unwatch()
		calm()
		back()
	}
}

// lend is ptrace.Tracer.Lend for all.
func (ts *tracers) lend() (stop func()) { return ts.undoable((*ptrace.Tracer).Lend) }

func (ts *tracers) undoable(f func(*ptrace.Tracer) func()) (stop func()) {
	var mu sync.Mutex
	stops := map[*ptrace.Tracer]func(){}
	_ = ts.each(func(t *ptrace.Tracer) error {
		s := f(t)
		mu.Lock()
		defer mu.Unlock()
		stops[t] = s
		return nil
	})
	return func() {
		_ = ts.each(func(t *ptrace.Tracer) error {
			if s := stops[t]; s != nil {
				s()
			}
			return nil
		})
	}
}

// divide says which tracer gets each of the processes, weighed by what a capture of it costs. Neighbours get the
// same one as a rule, so that a tree is frozen with few changes of thread.
func (ts *tracers) divide(pids []int, weight func(pid int) int) map[int]*ptrace.Tracer {
	of := map[int]*ptrace.Tracer{}
	total, sum := 0, 0
	for _, pid := range pids {
		total += weight(pid)
	}
	for _, pid := range pids {
		w := weight(pid)
		of[pid] = ts.all[min((sum+w/2)*len(ts.all)/max(total, 1), len(ts.all)-1)]
		sum += w
	}
	return of
}

// processWeight is what the capture of a process costs beside the copy of its mappings, in mappings.
const processWeight = 60

// weight is for tracers.divide.
func (s *survey) weight(pid int) int {
	if l := s.find(pid); l != nil {
		return processWeight + len(l.areas)
	}
	return processWeight
}
