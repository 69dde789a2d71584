package restore

import (
	"errors"
	"fmt"
	"strings"
)

// PIDTakenError says that a process id which the image needs is in use. A restored process
// has the ids it had, since it and others remember them.
type PIDTakenError struct {
	PID     int
	Comm    string // name of the holder
	Cmdline string // its command line, "" if it has none
	Use     string // how it is used when it is not simply that of a living process: "as process group", …
	Holds   string // a file of the image that it holds a lock of: it is what was checkpointed; "" if none
}

// Error names the holder and what to do.
func (e *PIDTakenError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pid %d is in use", e.PID)
	if e.Use != "" {
		b.WriteString(" " + e.Use)
	}
	if e.Comm != "" {
		fmt.Fprintf(&b, " by %s", e.Comm)
	}
	if e.Cmdline != "" && e.Cmdline != e.Comm {
		fmt.Fprintf(&b, " (%s)", e.Cmdline)
	}
	if e.Holds != "" {
		fmt.Fprintf(&b, ", which still holds its lock of %s", e.Holds)
	}
	b.WriteString("; end that process, or wait until it ends, and restore again")
	return b.String()
}

// NoFD stands in FileError.FD where the file is mapped, executed or a directory of a process
// rather than held under a number.
const NoFD = -1

// FileError says that a file the processes need is not there or not what it was.
type FileError struct {
	PID    int
	FD     int // NoFD: not an open file
	Path   string
	What   string // one clause: what is wrong with it; "" if Err says it all
	Remedy string // one clause: what to do
	Err    error  // the cause, or nil
}

// Error names process, descriptor and path, and what to do.
func (e *FileError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pid %d", e.PID)
	if e.FD != NoFD {
		fmt.Fprintf(&b, " fd %d", e.FD)
	}
	if e.What != "" { // otherwise the cause names the path
		fmt.Fprintf(&b, ": %s: %s", e.Path, e.What)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// HostError says that this machine, or this user on it, cannot run what is in the image.
type HostError struct {
	What   string // what the image needs and what there is
	Remedy string // one clause: what to do
	Err    error  // the cause, or nil
}

// Error says what is missing and what to do.
func (e *HostError) Error() string {
	s := e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap returns the cause.
func (e *HostError) Unwrap() error { return e.Err }

// AccessError says that the caller may not restore what is in the image.
type AccessError struct {
	PID       int
	TID       int
	CallerUID int
	What      string // one clause: what he does not have
}

// Error names the process and what the caller lacks.
func (e *AccessError) Error() string {
	who := fmt.Sprintf("pid %d", e.PID)
	if e.TID != e.PID {
		who += fmt.Sprintf(" thread %d", e.TID)
	}
	return fmt.Sprintf("%s: uid %d may not restore it: %s; restore it as root", who, e.CallerUID, e.What)
}

// ImageError says that the image, although undamaged, describes something that cannot be.
type ImageError struct {
	PID  int // 0: about no single process
	What string
}

// Error names the process.
func (e *ImageError) Error() string {
	if e.PID == 0 {
		return "image: " + e.What
	}
	return fmt.Sprintf("image: pid %d: %s", e.PID, e.What)
}

// ErrTimeout is wrapped by errors that say which process did not do what was waited for.
var ErrTimeout = errors.New("it took too long")
