package store

import (
	"errors"

	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/layout"
)

// Errors that callers decide on. Names that are taken or unknown come as fs.ErrExist and
// fs.ErrNotExist, and what the system said stays inside: errors.Is(err, syscall.ENOSPC) works.
var (
	// ErrNotYet is what Ingest.ReadAt says of bytes that were not Put yet.
	ErrNotYet = errors.New("not written yet")
	// ErrAborted is what an aborted ingest says.
	ErrAborted = errors.New("the ingest was aborted")
	// ErrClosed is what a closed store, reader or ingest says.
	ErrClosed = errors.New("already closed")
	// ErrDamaged is inside every error that tells of lost or changed bytes.
	ErrDamaged = damage.Err
	// ErrNotStore is what Open says of a folder that holds something else.
	ErrNotStore = layout.ErrNotStore
)

// ChunkError says which bytes are lost, and whose they are.
type ChunkError = damage.ChunkError

// RecordError says that the record of an image cannot be read.
type RecordError = damage.RecordError

// LockedError says that another process has the store open.
type LockedError = layout.LockedError

// VersionError says that a store was written by a newer ckptfs.
type VersionError = layout.VersionError

// KeyError says that a store was opened with the wrong key, or without the one it needs.
type KeyError = layout.KeyError
