package main

import (
	"runtime"
	"testing"
	"time"
)

func TestMemoryLimit(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int64
	}{{0, memoryGoal}, {60 << 20, memoryGoal}, {100 << 20, memoryGoal}, {400 << 20, 500 << 20}, {1 << 63, 1<<62 - 1}} {
		if got := memoryLimit(c.live); got != c.want {
			t.Errorf("%d bytes in use: %d, want %d", c.live, got, c.want)
		}
	}
}

// TestEachCollection: it is not only the first one.
func TestEachCollection(t *testing.T) {
	collected := make(chan uint64)
	eachCollection(func() {
		select {
		case collected <- liveHeap():
		case <-t.Context().Done():
		}
	})
	for n := 0; n < 3; {
		runtime.GC()
		select {
		case live := <-collected:
			if n++; live == 0 {
				t.Error("nothing is in use")
			}
		case <-time.After(time.Millisecond): // a stack may still have its address
		}
	}
}
