package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/lazymem"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/restore/lazy"
)

// lazySource makes a lazy restore of the mount one of package restore; nil: it is not lazy. rate bounds what
// comes in the background.
func lazySource(o *fusefs.LazyOptions, rate int64) *lazy.Source {
	if o == nil {
		return nil
	}
	return &lazy.Source{
		Name: o.Name, Image: o.Image, Size: o.Size, Owner: os.Getpid(), Rate: rate, Command: pagesArgs(), Log: o.Log,
		Report: func(p lazy.Progress) {
			o.Report(fusefs.LazyProgress{Server: p.Server, PIDs: p.PIDs, Missing: p.Missing, Total: p.Total, Failed: p.Failed, Done: p.Done, Log: p.Log})
		},
		End: func(error) { o.Release() }, // what went wrong is in the log
	}
}

// lazyOf lists what is still lazy of the restores that a mount has made.
func lazyOf(ctx context.Context, server int) ([]lazymem.Status, error) {
	all, err := lazymem.List(ctx)
	return slices.DeleteFunc(all, func(s lazymem.Status) bool { return s.Owner != server }), err
}

// describeLazy says who is still lazy, and how much is to come.
func describeLazy(all []lazymem.Status) string {
	var parts []string
	for i := range all {
		parts = append(parts, all[i].String())
	}
	return strings.Join(parts, "; ")
}

// refuseLazy fails if a mount must not end yet, or waits until it may.
func refuseLazy(ctx context.Context, dir string, server int, wait bool) error {
	all, err := lazyOf(ctx, server)
	if err != nil {
		return err
	}
	if len(all) > 0 && !wait {
		return fmt.Errorf("memory of processes that were restored lazily still comes through the mount on %s: %s; wait for it: ckptfs umount --wait %s", dir, describeLazy(all), dir)
	}
	for i := range all {
		if _, err := lazymem.Wait(ctx, &all[i]); err != nil {
			return fmt.Errorf("wait for %v: %w", &all[i], err)
		}
	}
	return nil
}

// finishLazy waits, before the mount's process ends, until the memory of lazy processes has come.
func finishLazy(l *log.Logger) {
	all, err := lazyOf(context.Background(), os.Getpid())
	if err != nil {
		l.Printf("is a process still lazy? %v", err)
		return
	}
	if len(all) == 0 {
		return
	}
	l.Printf("waiting for memory of processes that were restored lazily: %s; another SIGTERM ends this, and them if they touch what is missing", describeLazy(all))
	for i := range all {
		if _, err := lazymem.Wait(context.Background(), &all[i]); err != nil {
			l.Printf("wait for %v: %v", &all[i], err)
		}
	}
	l.Printf("all memory has come")
}
