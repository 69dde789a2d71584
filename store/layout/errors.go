package layout

import (
	"errors"
	"fmt"
)

// ErrNotStore is what is said of a folder or prefix that holds something else.
var ErrNotStore = errors.New("not a ckptfs store")

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
