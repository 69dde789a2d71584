package image

import (
	"fmt"
	"strings"
)

// Severity says what a Finding does to a checkpoint.
type Severity uint8

// The severities. The numbers are part of the format.
const (
	Refuse Severity = 1 // the checkpoint is refused
	Lose   Severity = 2 // the checkpoint is taken; this piece will not come back, by a named policy
)

// Finding is one piece of state that a checkpoint cannot keep: what explain lists, what a
// refused checkpoint answers and what an image carries as its list of losses.
type Finding struct {
	Severity Severity `cbor:"1,keyasint" json:"severity"`
	PID      int32    `cbor:"2,keyasint" json:"pid"`
	TID      int32    `cbor:"3,keyasint,omitempty" json:"tid,omitempty"`
	FD       int32    `cbor:"4,keyasint" json:"fd"` // NoFD if it is not about a descriptor
	Addr     uint64   `cbor:"5,keyasint,omitempty" json:"addr,omitempty"`
	Kind     string   `cbor:"6,keyasint" json:"kind"`   // what it is, as the kernel or the manual names it: "anon_inode:[io_uring]", "POSIX lock"
	What     string   `cbor:"7,keyasint" json:"what"`   // one clause: why it is refused, or what is lost
	Remedy   string   `cbor:"8,keyasint" json:"remedy"` // one clause: what the user can do
}

// NoFD stands in Finding.FD where no descriptor is meant, since 0 is one.
const NoFD int32 = -1

// String is the sentence a user reads, without a newline:
// "refused: pid 12 fd 5 (socket:[77]): sockets … ; remedy".
func (f Finding) String() string {
	var b strings.Builder
	switch f.Severity {
	case Refuse:
		b.WriteString("refused: ")
	default:
		b.WriteString("lost: ")
	}
	fmt.Fprintf(&b, "pid %d", f.PID)
	if f.TID != 0 && f.TID != f.PID {
		fmt.Fprintf(&b, " thread %d", f.TID)
	}
	if f.FD != NoFD {
		fmt.Fprintf(&b, " fd %d", f.FD)
	}
	if f.Addr != 0 {
		fmt.Fprintf(&b, " at %#x", f.Addr)
	}
	fmt.Fprintf(&b, " (%s): %s", f.Kind, f.What)
	if f.Remedy != "" {
		b.WriteString("; " + f.Remedy)
	}
	return b.String()
}

// RefusedError is what a checkpoint of a tree that cannot be kept faithfully returns. It
// lists every reason that was found, not only the first.
type RefusedError struct {
	Findings []Finding // all of Severity Refuse
}

// Error joins the sentences of all findings, one a line.
func (e *RefusedError) Error() string {
	lines := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Refusals returns an error that holds the findings of severity Refuse, or nil if there are none.
func Refusals(all []Finding) error {
	var r []Finding
	for _, f := range all {
		if f.Severity == Refuse {
			r = append(r, f)
		}
	}
	if len(r) == 0 {
		return nil
	}
	return &RefusedError{Findings: r}
}
