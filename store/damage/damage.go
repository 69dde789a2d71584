// Package damage tells bytes that are lost from bytes that cannot be read just now, and says
// whose they are.
package damage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
)

// Err is inside every error that tells of lost or changed bytes.
var Err = errors.New("the store is damaged")

// Is tells bytes that are lost from bytes that cannot be read just now.
func Is(err error) bool {
	var be *bucket.Error
	if errors.As(err, &be) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errors.Is(err, fs.ErrNotExist)
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		return no == syscall.EIO
	}
	return !errors.Is(err, os.ErrClosed)
}

// ChunkError says which bytes are lost, and whose they are.
type ChunkError struct {
	Image  string     // image they were read for, "" if none
	Offset int64      // of the chunk in the image, -1 for a chunk of its list
	Hash   chunk.Hash // chunk
	Pack   string     // pack file it stands in, "" if it is in none
	Err    error      // what is wrong
}

func (e *ChunkError) Error() string {
	s := "chunk " + e.Hash.String()
	if e.Pack != "" {
		s += " in pack " + e.Pack
	}
	s += ": " + e.Err.Error()
	switch {
	case e.Image == "":
		return s
	case e.Offset < 0:
		return fmt.Sprintf("image %q, chunk list: %s", e.Image, s)
	}
	return fmt.Sprintf("image %q, offset %d: %s", e.Image, e.Offset, s)
}

// Unwrap makes errors.Is find both Err and what the system said. A bucket that does not
// answer has lost nothing.
func (e *ChunkError) Unwrap() []error {
	var be *bucket.Error
	if errors.As(e.Err, &be) && !Is(e.Err) {
		return []error{e.Err}
	}
	return []error{Err, e.Err}
}

// RecordError says that the record of an image cannot be read.
type RecordError struct {
	Path string
	Err  error
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("image record %s: %v; put the file back from a backup, or delete it to give the image up", e.Path, e.Err)
}

// Unwrap makes errors.Is find both Err and the cause.
func (e *RecordError) Unwrap() []error { return []error{Err, e.Err} }
