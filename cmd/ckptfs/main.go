// Command ckptfs takes and restores checkpoints of running Linux processes, as a
// filesystem (ckptfs mount) and by hand (ckptfs dump, ckptfs restore).
package main

import (
	"context"
	"math"
	"os"
	"os/signal"

	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

func main() {
	// What a shell or terminal leaks to us stays here: processes we start or restore would
	// otherwise hold it for ever. That it fails has no effect on anything we do.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	store.SpareProc()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop) // a second ctrl-C ends us at once
	code := run(ctx, &console{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}
