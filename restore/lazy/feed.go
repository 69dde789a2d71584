package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

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
type fed struct{ idle chan io.ReadWriter }

func newFed(conns []io.ReadWriter) *fed {
	f := &fed{make(chan io.ReadWriter, len(conns))}
	for _, c := range conns {
		f.idle <- c
	}
	return f
}

// ReadAt asks the feeder.
func (f *fed) ReadAt(p []byte, off int64) (int, error) {
	c := <-f.idle
	defer func() { f.idle <- c }()
	for done := 0; done < len(p); {
		n, err := fetchFrom(c, p[done:min(len(p), done+streamLen)], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return len(p), nil
}

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
		return 0, fmt.Errorf("the process that has the image does not give it any more: %w", err)
	}
	n := binary.LittleEndian.Uint32(head)
	if head[4] == 0 && n == uint32(len(p)) {
		return io.ReadFull(c, p)
	}
	if head[4] == 0 || n > streamLen {
		return 0, fmt.Errorf("an answer of %d bytes to a question for %d", n, len(p))
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(c, text); err != nil {
		return 0, err
	}
	return 0, errors.New(string(text))
}
