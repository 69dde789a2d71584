package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// memoryGoal is how many bytes the Go runtime of a mount may take before it collects garbage more often than it would:
// with the program itself and its stacks that makes less than 200 MiB.
const memoryGoal = 128 << 20

// boundMemory keeps the memory of a mount small. What has to be known of an image that is being written or restored, its
// list of chunks, takes 9 MiB for each GiB; where that needs more than memoryGoal, the bound rises with it, since else the
// runtime would do nothing but collect. A GOMEMLIMIT of the user counts instead.
func boundMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit := int64(memoryGoal)
	debug.SetMemoryLimit(limit)
	eachCollection(func() {
		if now := memoryLimit(liveHeap()); now != limit {
			limit = now
			debug.SetMemoryLimit(limit)
		}
	})
}

// memoryLimit leaves a quarter of what is in use for what is not in use any more. A collection costs little: nearly all of
// it is buffers without pointers.
func memoryLimit(live uint64) int64 {
	return int64(max(memoryGoal, min(live+live/4, math.MaxInt64/2)))
}

// liveHeap is how many bytes of the heap the last collection has found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}

// eachCollection has f called after each garbage collection, by one goroutine.
func eachCollection(f func()) {
	runtime.SetFinalizer(&garbage{}, func(*garbage) {
		f()
		eachCollection(f)
	})
}

// garbage is what only its finalizer is wanted of. It has a pointer, so that it shares its memory with nothing.
type garbage struct{ _ *byte }
