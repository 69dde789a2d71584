package image

// LockType is the kind of a file lock.
type LockType uint8

// The types of locks. The numbers are part of the format.
const (
	LockFlock LockType = 1 // flock(2): of the description
	LockPOSIX LockType = 2 // F_SETLK of fcntl(2): of the process, taken by way of the description
	LockOFD   LockType = 3 // F_OFD_SETLK: of the description
	LockLease LockType = 4 // F_SETLEASE: of the description
)

// Lock is a lock or lease on a file.
type Lock struct {
	Type  LockType `cbor:"1,keyasint" json:"type"`
	Write bool     `cbor:"2,keyasint,omitempty" json:"write,omitempty"` // exclusive; else shared
	Start int64    `cbor:"3,keyasint,omitempty" json:"start"`           // first byte
	End   int64    `cbor:"4,keyasint" json:"end"`                       // last byte; 1<<63-1: to the end of the file, wherever that is
	PID   int32    `cbor:"5,keyasint" json:"pid"`                       // who took it, or else a process of the tree that holds it; or the first thread that has a table of its own in which it stands
}
