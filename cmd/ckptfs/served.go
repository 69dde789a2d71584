package main

import (
	"os"
	"runtime"
	"runtime/metrics"
)

// served is what a mount says of its own process. What stays of these numbers when nobody uses the mount should not grow
// with the checkpoints that it has taken.
type served struct {
	PID         int
	Goroutines  int
	Descriptors int    // open ones, without that of the folder in which they are counted; -1: it cannot tell
	Memory      uint64 // bytes that the Go runtime has of the system
	Heap        uint64 // bytes of them that are in use, after a collection
}

// ourselves counts what this process has, once what is not in use any more was collected.
func ourselves() served {
	runtime.GC()
	s := served{PID: os.Getpid(), Goroutines: runtime.NumGoroutine(), Descriptors: -1, Heap: liveHeap()}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Descriptors = len(list) - 1
	}
	all := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(all)
	if all[0].Value.Kind() == metrics.KindUint64 && all[1].Value.Kind() == metrics.KindUint64 {
		s.Memory = all[0].Value.Uint64() - all[1].Value.Uint64()
	}
	return s
}

// served asks the mount.
func (h *heldStore) served() (s served, err error) {
	err = h.ask(h.ctx, request{Op: "served"}, nil, &s)
	return s, err
}
