package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/restore"
	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// The exit codes of ckptfs. Scripts depend on them: a number never changes its meaning.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitBadImage    = 3
	exitPID         = 4
	exitPrivilege   = 5
	exitStorage     = 6
	exitTimeout     = 7
	exitInterrupted = 130 // 128 + SIGINT, as a shell says it
)

// exitTexts is what `ckptfs --help` says of them.
var exitTexts = []struct {
	code int
	text string
}{
	{exitOK, "done"},
	{exitFailed, "refused or failed; the sentence on standard error says why"},
	{exitUsage, "the command line makes no sense"},
	{exitBadImage, "the file is not an image, is cut off, corrupt, or of a newer ckptfs"},
	{exitPID, "no such process, or one that cannot be a target; on restore: a pid is taken"},
	{exitPrivilege, "not permitted, or this kernel lacks what is needed (see ckptfs check)"},
	{exitStorage, "disk full, input/output error, the store is in use, or its bucket does not answer"},
	{exitTimeout, "the processes did not stop or start in time; nothing has changed"},
	{exitInterrupted, "interrupted by a signal; nothing has changed"},
}

// statusError ends the command with a code of its own. It says nothing: what there was to
// say has been printed.
type statusError int

func (statusError) Error() string { return "" }

// exitCode turns the error a command ended with into the exit code. Specific causes come
// before general ones.
func exitCode(err error) int {
	var (
		usage   *usageError
		status  statusError
		target  *ckpt.TargetError
		taken   *restore.PIDTakenError
		access  *restore.AccessError
		host    *restore.HostError
		slow    *ptrace.TimeoutError
		seccomp *ptrace.SeccompError
		locked  *store.LockedError
		late    *ckpt.LazyError
		bucket  *store.BucketError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, image.ErrNotImage), errors.Is(err, image.ErrCut), errors.Is(err, image.ErrCorrupt),
		errors.Is(err, image.ErrVersion), errors.Is(err, image.ErrFeature), errors.Is(err, image.ErrHostile):
		return exitBadImage
	case errors.As(err, &bucket) && !errors.Is(err, fs.ErrPermission):
		return exitStorage
	case errors.As(err, &taken), errors.As(err, &target), errors.Is(err, unix.ESRCH):
		return exitPID
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, restore.ErrTimeout), errors.As(err, &slow), errors.As(err, &late), errors.Is(err, unix.ETIMEDOUT):
		return exitTimeout
	case errors.As(err, &locked), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO),
		errors.Is(err, unix.EFBIG), errors.Is(err, unix.EROFS):
		return exitStorage
	case errors.As(err, &access), errors.As(err, &seccomp), errors.As(err, &host), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSYS):
		return exitPrivilege
	}
	return exitFailed
}
