package lazy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// The restore and its page server talk over a socket of packets: each is a line of JSON, those of
// the restore with descriptors.
const maxPacket = 200 << 10

// request is what the restore asks for. It is answered before the next one.
type request struct {
	Op string `json:"op"` // open, space, go

	Name  string `json:"name,omitempty"`  // open: of what is restored
	Owner int    `json:"owner,omitempty"` // open: the mount that it belongs to
	Rate  int64  `json:"rate,omitempty"`  // open: bytes a second; 0: no bound
	Size  int64  `json:"size,omitempty"`  // open: of the image
	Fed   bool   `json:"fed,omitempty"`   // open: the descriptors are those of feeds rather than of a file

	PID  int   `json:"pid,omitempty"`  // space
	MM   int   `json:"mm,omitempty"`   // space: index in the manifest
	VMAs []int `json:"vmas,omitempty"` // space: which of its mappings
}

// The operations.
const (
	opOpen  = "open"  // descriptors: the image, or its feeds
	opSpace = "space" // descriptors: userfaultfd, pidfd
	opGo    = "go"    // the processes run from now on
)

// reply is what the server says: an answer (OK or Error), or something else.
type reply struct {
	OK    bool   `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
	Log   string `json:"log,omitempty"`

	Progress *Progress `json:"progress,omitempty"`
}

// Progress is how far a lazy restore is.
type Progress struct {
	Server  int    `json:"server"` // pid of the page server
	PIDs    []int  `json:"pids"`   // of the processes that are lazy
	Log     string `json:"log"`
	Missing int64  `json:"missing"` // bytes that have not come yet
	Total   int64  `json:"total"`   // bytes that were missing at first
	Failed  int64  `json:"failed,omitempty"`
	Done    bool   `json:"done"` // the last report
}

// link is one end of the socket. One goroutine receives, and closes it.
type link struct {
	mu sync.Mutex // for sending, and the others
	fd int        // -1: closed
}

// hangUp makes both ends see the end.
func (l *link) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		_ = unix.Shutdown(l.fd, unix.SHUT_RDWR) // the other end may be gone
	}
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = unix.Close(l.fd) // nothing is sent any more
	l.fd = -1
}

// send sends a packet with descriptors.
func (l *link) send(v any, fds ...int) error { return l.sendWith(0, v, fds) }

func (l *link) sendWith(flags int, v any, fds []int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		return fmt.Errorf("a message of %d bytes is too long", len(b))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return unix.EPIPE
	}
	return unix.Sendmsg(l.fd, b, rights, nil, flags|unix.MSG_NOSIGNAL)
}

// tell is send for what does not matter to a listener who has gone, or has no time.
func (l *link) tell(r reply) { _ = l.sendWith(unix.MSG_DONTWAIT, r, nil) }

// receive waits for a packet. Its descriptors stay over an exec. The end of the other side is io.EOF.
func (l *link) receive(v any) (fds []int, err error) {
	const maxFDs = 8
	b, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFDs))
	var n, on int
	for {
		n, on, _, _, err = unix.Recvmsg(l.fd, b, oob, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 {
		return nil, io.EOF
	}
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		more, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, err
		}
		fds = append(fds, more...)
	}
	return fds, json.Unmarshal(b[:n], v)
}
