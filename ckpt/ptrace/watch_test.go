package ptrace

import (
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestWatch waits for a thread that does not stop: the wait sleeps, and ends at its deadline all
// the same; and for one that does.
func TestWatch(t *testing.T) {
	for _, c := range []struct {
		name    string
		tracers int
		mode    int32
	}{
		{"one tracer", 1, watched},
		{"a tracer for each processor", max(2, runtime.NumCPU()), crowded},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ts []*Tracer
			for range c.tracers {
				ts = append(ts, NewTracer())
			}
			defer func() {
				for _, tr := range ts {
					tr.Close()
				}
			}()
			stop := Watch(ts...)
			defer func() { stop() }()
			if got := ts[0].waits.mode.Load(); got != c.mode {
				t.Fatalf("mode %d, want %d", got, c.mode)
			}
			cmd, _ := startReady(t, nil, "waitpoll")
			pid := cmd.Process.Pid
			err := ts[0].Do(func() error {
				th, err := ts[0].Seize(pid, 0)
				if err != nil {
					return err
				}
				if _, err := th.WaitStop(time.Now().Add(callTimeout)); err != nil {
					return err
				}
				if err := th.Cont(0); err != nil {
					return err
				}
				var late *TimeoutError
				var group sync.WaitGroup
				group.Go(runtime.GC) // stops all goroutines
				defer group.Wait()
				if _, err := th.WaitStop(time.Now().Add(20 * time.Millisecond)); !errors.As(err, &late) {
					t.Errorf("waited for a thread that runs: %v, want a timeout", err)
				}
				if ts[0].waits.sleeps.Load() == 0 {
					t.Error("it did not sleep")
				}
				if err := th.Interrupt(); err != nil {
					return err
				}
				if _, err := th.WaitStop(time.Now().Add(callTimeout)); err != nil {
					return err
				}
				return th.Detach()
			})
			if err != nil {
				t.Fatal(err)
			}
			checkAlive(t, pid)
			stop()
			stop = func() {}
			if got := ts[0].waits.mode.Load(); got != unwatched {
				t.Errorf("mode %d after the watch", got)
			}
		})
	}
}
