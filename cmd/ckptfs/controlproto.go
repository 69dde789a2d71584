package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// A mount has its store for as long as it lives. Other commands on that store ask it, over a unix
// socket in the store's folder, one connection for each question:
//
//	the mount     greeting   which protocol, and whether a key is needed
//	the command   request    what to do, and the proof that it has the key
//	the mount     reply      some lines of progress, one each, and at last the result or an error
//
// Each is a line of JSON. When the command hangs up the mount stops what it does for it.
const (
	controlName     = "control" // of the socket
	controlProtocol = 1
	controlLine     = 64 << 20 // the longest line that is read: a list of very many checkpoints
	requestLine     = 64 << 10

	controlPatience = 30 * time.Second // of a command that hears nothing
	controlBeat     = 5 * time.Second  // after which the mount says that it is at work
)

// greeting is the first line.
type greeting struct {
	Protocol  int
	PID       int
	Sealed    bool   // the store is encrypted
	Challenge []byte // see store.Key.Prove
}

// request is what a command asks for.
type request struct {
	Protocol int
	PID      int    // of who asks, for the log
	Proof    []byte // nil: it has no key
	Op       string // list, stats, served, verify, prune, gc, settle
	ReadData bool   `json:",omitempty"` // verify
	Workers  int    `json:",omitempty"` // settle
	Policy   struct {
		KeepLast           int
		KeepWithin, Expire time.Duration
		MaxSize            int64
		AllHosts           bool
	} // prune
}

// reply is a line of the answer.
type reply struct {
	Fault  string          `json:",omitempty"` // verify found it
	Read   int64           `json:",omitempty"` // verify has read so many bytes
	Total  int64           `json:",omitempty"` // of so many
	Done   bool            `json:",omitempty"` // this is the last line
	Result json.RawMessage `json:",omitempty"`
	Error  *wireError      `json:",omitempty"`
}

// wireError is an error on its way: its sentence, and what an exit code depends on.
type wireError struct {
	Text    string
	Damaged bool          `json:",omitempty"`
	Bucket  bool          `json:",omitempty"`
	Errno   syscall.Errno `json:",omitempty"`
}

func (e *wireError) Error() string { return e.Text }

// Unwrap makes errors.Is find what the mount found.
func (e *wireError) Unwrap() []error {
	var out []error
	if e.Damaged {
		out = append(out, store.ErrDamaged)
	}
	if e.Errno != 0 {
		out = append(out, e.Errno)
	} else if e.Bucket {
		out = append(out, unix.EIO) // what exitCode makes of a bucket that does not answer
	}
	return out
}

func wire(err error) *wireError {
	if err == nil {
		return nil
	}
	var bucket *store.BucketError
	e := &wireError{Text: err.Error(), Damaged: errors.Is(err, store.ErrDamaged), Bucket: errors.As(err, &bucket)}
	errors.As(err, &e.Errno) // 0 if no call of the system failed
	return e
}

var errLongLine = errors.New("a line without end")

// readLine reads a line of JSON of at most limit bytes into v.
func readLine(r *bufio.Reader, limit int, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return errLongLine
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("it is no line of the protocol: %w", err)
	}
	return nil
}

// parseRequest reads a request and refuses what makes no sense.
func parseRequest(r *bufio.Reader) (*request, error) {
	q := new(request)
	if err := readLine(r, requestLine, q); err != nil {
		return nil, err
	}
	switch {
	case q.Protocol != controlProtocol:
		return nil, fmt.Errorf("this mount speaks version %d of the protocol, the command %d: use the same ckptfs for both", controlProtocol, q.Protocol)
	case q.Policy.KeepLast < 0 || q.Policy.KeepWithin < 0 || q.Policy.Expire < 0 || q.Policy.MaxSize < 0:
		return nil, errors.New("a rule of what to keep is negative")
	}
	switch q.Op {
	case "list", "stats", "served", "verify", "prune", "gc", "settle":
		return q, nil
	}
	return nil, fmt.Errorf("this mount cannot do %q", q.Op)
}

// policy is the policy of a request.
func (q *request) policy() store.Policy {
	p := &q.Policy
	return store.Policy{KeepLast: p.KeepLast, KeepWithin: p.KeepWithin, Expire: p.Expire, MaxSize: p.MaxSize, AllHosts: p.AllHosts}
}
