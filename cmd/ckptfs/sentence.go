package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// sentence turns the error a command ended with into what the user reads: the whole chain,
// plus what to do where the error itself cannot know it. An empty string prints nothing.
func sentence(err error) string {
	var (
		status  statusError
		refused *image.RefusedError
		locked  *store.LockedError
	)
	switch {
	case errors.As(err, &status):
		return ""
	case errors.As(err, &refused):
		return fmt.Sprintf("refused, and nothing was changed:\n%v", refused)
	case errors.Is(err, context.Canceled):
		return "interrupted; nothing has changed"
	case errors.As(err, &locked):
		return fmt.Sprintf("store %s is in use by process %d, most likely a mount: look there, or end it with ckptfs umount", locked.Dir, locked.PID)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Sprintf("%v; make room and try again, the processes are as they were", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Sprintf("%v; this needs root: ckptfs check says what is missing", err)
	}
	return err.Error()
}
