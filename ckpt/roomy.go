package ckpt

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// freezeGC is the GOGC of a freeze: a collection would take processors from it, and stop its threads.
const freezeGC = 1000

// muchGarbage is a heap that is worth a collection before a freeze, a millisecond or two.
const muchGarbage = 6 << 20

// heapBytes is what is in the heap, garbage too.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}

// roomyNow counts the freezes of this process, and has what to go back to after the last one.
var roomyNow struct {
	sync.Mutex
	freezes, threads, procs int
	gc, lazy                int // GOGC before and in the freezes
	calm                    func()
}

// roomy prepares the Go runtime for a freeze, in which so many threads of ours spin without telling it, and when they wake
// up want a processor of its at once; what else the freeze needs would wait. The function that is returned takes
// it back.
func roomy(threads int) (back func()) {
	roomyNow.Lock()
	defer roomyNow.Unlock()
	if roomyNow.freezes == 0 {
		// -1 also waits for the end of a collection that is under way. One would hold up our threads in realtime, which
		// wait without sleeping for what it does with a goroutine, and would keep it from a processor.
		roomyNow.procs, roomyNow.gc, roomyNow.lazy = runtime.GOMAXPROCS(0), debug.SetGCPercent(-1), -1
		if heapBytes() > muchGarbage {
			runtime.GC() // the freeze then finds memory that is there already, where new memory comes page by page
		}
		if roomyNow.gc >= 0 {
			roomyNow.lazy = max(roomyNow.gc, freezeGC)
			debug.SetGCPercent(roomyNow.lazy)
		}
		roomyNow.calm = ptrace.HurryRuntime()
	}
	roomyNow.freezes++
	roomyNow.threads += threads
	runtime.GOMAXPROCS(roomyNow.procs + roomyNow.threads)
	return func() {
		roomyNow.Lock()
		defer roomyNow.Unlock()
		roomyNow.freezes--
		roomyNow.threads -= threads
		runtime.GOMAXPROCS(roomyNow.procs + roomyNow.threads)
		if roomyNow.freezes > 0 {
			return
		}
		roomyNow.calm()
		if now := debug.SetGCPercent(roomyNow.gc); now != roomyNow.lazy {
			debug.SetGCPercent(now) // somebody has chosen it meanwhile
		}
	}
}
