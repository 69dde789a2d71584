package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountError: a restore by the mount has the exit codes of one by the command.
func TestMountError(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		code  int
	}{{unix.EEXIST, exitPID}, {unix.EBADMSG, exitBadImage}, {unix.EOPNOTSUPP, exitPrivilege}, {unix.ETIMEDOUT, exitTimeout}, {unix.ENOSPC, exitStorage},
		{unix.EPERM, exitPrivilege}, {unix.ESTALE, exitFailed}} {
		err := fmt.Errorf("restore of x: %w", mountError{"why", fmt.Errorf("close: %w", c.errno)})
		if got := exitCode(err); got != c.code || err.Error() != "restore of x: why" {
			t.Errorf("%v: exit code %d, want %d: %v", c.errno, got, c.code, err)
		}
	}
}

// TestWithTemplate: what is not MOUNT/images/NAME/image of a mount is restored as ever.
func TestWithTemplate(t *testing.T) {
	f := &restoreFlags{flags: newFlags("restore")}
	for _, path := range []string{"image", "-", "/", "/image", "/tmp/images/a/image", "/tmp/images/a/log", "images/a/image"} {
		if m, ok := f.withTemplate(path); ok {
			t.Errorf("%s: %+v", path, m)
		}
	}
}
