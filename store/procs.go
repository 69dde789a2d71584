package store

import (
	"os"
	"runtime"
)

// SpareProc lets one goroutine more run than there are processors, unless the user has set
// GOMAXPROCS. Goroutines that write packs, wait for the disk or read /dev/fuse are in system
// calls, and the runtime takes some time, up to 10 ms, to notice and to let another one use their
// turn: on two processors an ingest takes a tenth longer without. A program with a store calls
// it when it begins.
func SpareProc() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}
