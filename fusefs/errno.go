package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// errnoError is an error of this package that knows its errno.
type errnoError struct {
	errno syscall.Errno
	text  string
}

func (e *errnoError) Error() string        { return e.text }
func (e *errnoError) Errno() syscall.Errno { return e.errno }
func (e *errnoError) Unwrap() error        { return e.errno }

func failf(errno syscall.Errno, format string, args ...any) error {
	return &errnoError{errno, fmt.Sprintf(format, args...)}
}

// errno is the one place where an error becomes what a system call returns. The sentence
// behind it is in the mount's log and beside the file, see explain, info and NAME.status.
func errno(err error) syscall.Errno {
	var (
		own     interface{ Errno() syscall.Errno }
		refused *image.RefusedError
		sys     syscall.Errno
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.Errno()
	case errors.As(err, &refused):
		return syscall.EOPNOTSUPP
	case errors.Is(err, image.ErrNotImage):
		return syscall.ENOEXEC
	case errors.Is(err, image.ErrVersion):
		return syscall.EPROTO
	case errors.Is(err, image.ErrFeature):
		return syscall.EOPNOTSUPP
	case errors.Is(err, image.ErrCut), errors.Is(err, image.ErrCorrupt), errors.Is(err, image.ErrHostile):
		return syscall.EBADMSG
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.As(err, &sys):
		return sys
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrExist):
		return syscall.EEXIST
	case errors.Is(err, fs.ErrInvalid): // a name that is no UTF-8; of EINVAL mv says "to a subdirectory of itself"
		return syscall.EILSEQ
	}
	return syscall.EIO
}

// neverEINTR replaces the errnos that a caller would take as "try again": cp repeats a WRITE
// that fails with EINTR for ever.
func neverEINTR(e syscall.Errno) syscall.Errno {
	if e == syscall.EINTR || e == syscall.EAGAIN {
		return syscall.EIO
	}
	return e
}
