package store

import (
	"errors"
	"fmt"
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
	ErrDamaged = errors.New("the store is damaged")
	// ErrNotStore is what Open says of a folder that holds something else.
	ErrNotStore = errors.New("not a ckptfs store")
)

// LockedError says that another process has the store open.
type LockedError struct {
	Dir string
	PID int // the holder, 0 if it did not write its number yet
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("store %s is in use by another process; stop it first", e.Dir)
	}
	return fmt.Sprintf("store %s is in use by process %d; stop it first", e.Dir, e.PID)
}

// VersionError says that a store was written by a newer ckptfs.
type VersionError struct {
	Dir   string
	Found int // layout version of the folder
	Known int // newest one this program knows
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("store %s has layout version %d, this program knows versions up to %d; use a newer ckptfs",
		e.Dir, e.Found, e.Known)
}

// KeyError says that a store was opened with the wrong key, or without the one it needs.
type KeyError struct {
	Dir    string
	Sealed bool // the store is encrypted
	Given  bool // a key was given
}

func (e *KeyError) Error() string {
	switch {
	case !e.Sealed:
		return fmt.Sprintf("store %s is not encrypted, but a key was given; open it without --key-file, or use an empty folder for an encrypted store", e.Dir)
	case !e.Given:
		return fmt.Sprintf("store %s is encrypted; give its key with --key-file", e.Dir)
	}
	return fmt.Sprintf("store %s is encrypted with another key; give the right one with --key-file", e.Dir)
}

// ChunkError says which bytes are lost, and whose they are.
type ChunkError struct {
	Image  string // image they were read for, "" if none
	Offset int64  // of the chunk in the image, -1 for a chunk of its list
	Hash   Hash   // chunk
	Pack   string // pack file it stands in, "" if it is in none
	Err    error  // what is wrong
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

// Unwrap makes errors.Is find both ErrDamaged and what the system said. A bucket that does
// not answer has lost nothing.
func (e *ChunkError) Unwrap() []error {
	var be *BucketError
	if errors.As(e.Err, &be) && !isDamage(e.Err) {
		return []error{e.Err}
	}
	return []error{ErrDamaged, e.Err}
}

// RecordError says that the record of an image cannot be read.
type RecordError struct {
	Path string
	Err  error
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("image record %s: %v; put the file back from a backup, or delete it to give the image up", e.Path, e.Err)
}

// Unwrap makes errors.Is find both ErrDamaged and the cause.
func (e *RecordError) Unwrap() []error { return []error{ErrDamaged, e.Err} }
