package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An image that is no file, as that in a store, is fed to the server by the process that has it,
// over some sockets, so that a thread which waits for a page does not wait for the stream as well:
//
//	the server   offset (8 bytes), length (4)
//	the feeder   length of what follows (4), 1 if that is an error (1), the bytes or the sentence
const (
	feeds   = 3
	askLen  = 12
	headLen = 5
)

// feedPair makes a socket for a feed.
func feedPair() (ours, theirs *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "feed"), os.NewFile(uintptr(p[1]), "feed"), nil
}

// feed answers a server until it hangs up.
func feed(conn io.ReadWriter, r io.ReaderAt) {
	ask, buf := make([]byte, askLen), make([]byte, headLen+streamLen)
	for {
		if _, err := io.ReadFull(conn, ask); err != nil {
			return // it has ended
		}
		off, n := int64(binary.LittleEndian.Uint64(ask)), int(binary.LittleEndian.Uint32(ask[8:]))
		if n > streamLen {
			return
		}
		got, err := r.ReadAt(buf[headLen:][:n], off)
		buf[4] = 0
		if got < n {
			got, buf[4] = copy(buf[headLen:], fmt.Sprint(err)), 1
		}
		binary.LittleEndian.PutUint32(buf, uint32(got))
		if _, err := conn.Write(buf[:headLen+got]); err != nil {
			return
		}
	}
}

// fed reads an image through feeds.
type fed struct {
	idle chan io.ReadWriter // closed when none is left
	left atomic.Int32
}

func newFed(conns []io.ReadWriter) *fed {
	f := &fed{idle: make(chan io.ReadWriter, len(conns))}
	f.left.Store(int32(len(conns)))
	for _, c := range conns {
		f.idle <- c
	}
	return f
}

// ReadAt asks the feeder.
func (f *fed) ReadAt(p []byte, off int64) (int, error) {
	c, ok := <-f.idle
	if !ok {
		return 0, errNoFeed
	}
	var err error
	defer func() { f.back(c, err) }()
	for done := 0; done < len(p); {
		var n int
		n, err = fetchFrom(c, p[done:min(len(p), done+streamLen)], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// back gives a feed back, unless it has failed: an answer that comes too late would be taken for that to another question.
func (f *fed) back(c io.ReadWriter, err error) {
	if !errors.Is(err, errNoFeed) {
		f.idle <- c
	} else if f.left.Add(-1) == 0 {
		close(f.idle)
	}
}

// errNoFeed says that a feed cannot be used any more.
var errNoFeed = errors.New("the process that has the image does not give it any more")

// feedPatience is how long a feeder may take for an answer, from a bucket perhaps.
const feedPatience = 2 * time.Minute

// fetchFrom asks for at most streamLen bytes.
func fetchFrom(c io.ReadWriter, p []byte, off int64) (int, error) {
	ask := binary.LittleEndian.AppendUint64(nil, uint64(off))
	ask = binary.LittleEndian.AppendUint32(ask, uint32(len(p)))
	head := make([]byte, headLen)
	_, err := c.Write(ask)
	if err == nil {
		_, err = io.ReadFull(c, head)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoFeed, err)
	}
	n := binary.LittleEndian.Uint32(head)
	good := head[4] == 0
	if good && n != uint32(len(p)) || n > streamLen {
		return 0, fmt.Errorf("%w: an answer of %d bytes to a question for %d", errNoFeed, n, len(p))
	}
	if !good {
		p = make([]byte, n)
	}
	if got, err := io.ReadFull(c, p); err != nil {
		return got, fmt.Errorf("%w: %w", errNoFeed, err)
	}
	if !good {
		return 0, errors.New(string(p))
	}
	return len(p), nil
}
