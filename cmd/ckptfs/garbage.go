package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// lazyGC is the GOGC of a command until garbage is collected for the first time, which is at a heap of about 40 MB
// then instead of 4: most commands are over by then.
const lazyGC = 1000

// letGarbageLie puts the first collection of garbage off. From then on it is as the Go runtime likes it.
func letGarbageLie() {
	if os.Getenv("GOGC") != "" {
		return // somebody knows better
	}
	was := debug.SetGCPercent(lazyGC)
	first := new(*byte) // found unused by that collection
	runtime.AddCleanup(first, func(was int) { debug.SetGCPercent(was) }, was)
}
