package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptfs/ckptfs/fusefs"
	"golang.org/x/sys/unix"
)

// umountGrace is how long a server may take to close its store.
const umountGrace = 20 * time.Second

func umountCommand() *command {
	var lazy, wait bool
	fs := newFlags("umount")
	fs.BoolVarP(&lazy, "lazy", "l", false, "unmount even if it is in use")
	fs.BoolVar(&wait, "wait", false, "wait until all memory of processes that were restored lazily has come")
	return &command{
		name: "umount", args: "DIR", short: "end a mount and wait until its store is closed", flags: fs, nargs: [2]int{1, 1},
		long: `Trees that were frozen through the mount go on. Checkpoints that are being written are given up.
A mount through which memory of a lazy restore (restore/lazy/) still comes is not ended: the command says
which processes it is and how much is to come, or waits with --wait.

Examples:
  ckptfs umount /mnt/ckpt
  ckptfs umount --wait /mnt/ckpt
  ckptfs umount -l /mnt/ckpt    although a shell stands in it`,
		run: func(ctx context.Context, c *console, args []string) error { return umount(ctx, args[0], lazy, wait) },
	}
}

func umount(ctx context.Context, dir string, lazy, wait bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if stale, err := fusefs.ClearStale(dir); stale || err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	pid, err := fusefs.ServerPID(dir)
	if err != nil {
		return fmt.Errorf("%s is no mount of ckptfs", dir)
	}
	if err := refuseLazy(ctx, dir, pid, wait); err != nil {
		return err
	}
	server, err := newWaiter(pid)
	if err != nil {
		return err
	}
	defer server.close()
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	switch err := unix.Unmount(dir, flags); {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use: a process has a file open in it or stands in it; end that process, or use --lazy", dir)
	case err != nil:
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return server.poll(ctx, unix.POLLIN, umountGrace)
}
