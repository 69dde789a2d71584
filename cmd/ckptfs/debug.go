package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/steplog"
)

// debugEnv makes every checkpoint and restore log its steps with their times, one line each,
// see package steplog: 1 to standard error (for a mount in the background that is its log),
// anything else is a file to append to.
const debugEnv = "CKPTFS_DEBUG"

// debugPatience is how long a command that is through waits until its steps are written.
const debugPatience = 2 * time.Second

// steps opens the log of steps, nil if none is wanted, and returns what ends it.
func (c *console) steps() (*steplog.Log, func(), error) {
	switch v := os.Getenv(debugEnv); v {
	case "", "0":
		return nil, func() {}, nil
	case "1":
		l := steplog.New(c.Err)
		return l, func() { l.Flush(debugPatience) }, nil
	default:
		f, err := os.OpenFile(v, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("%s names a file for the steps (1: standard error): %w", debugEnv, err)
		}
		l := steplog.New(f)
		return l, func() {
			l.Flush(debugPatience)
			_ = f.Close() // a log: there is nobody to tell
		}, nil
	}
}

// absoluteDebug is the variable for a process with another working directory.
func absoluteDebug() []string {
	switch v := os.Getenv(debugEnv); v {
	case "", "0", "1":
		return nil
	default:
		abs, err := filepath.Abs(v)
		if err != nil {
			return nil // then it stays as it is
		}
		return []string{debugEnv + "=" + abs}
	}
}
