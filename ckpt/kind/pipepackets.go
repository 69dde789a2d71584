package kind

import (
	"errors"
	"fmt"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// A pipe in packet mode (O_DIRECT of pipe(2)) keeps each write apart: a read returns one packet at
// most. The mode belongs to who writes, so a pipe may hold bytes and packets mixed. tee(2)
// copies buffers with their packet flag, which is how the borders are found without a read.

// pipePart is a run of what is in a pipe: one packet, or bytes without borders.
type pipePart struct {
	Len    int32 `cbor:"1,keyasint"`
	Packet bool  `cbor:"2,keyasint,omitempty"`
}

// maxPackets bounds the packets of one pipe: each is looked for in a copy of the whole.
const maxPackets = 1024

var errPackets = fmt.Errorf("it holds more than %d packets (written with O_DIRECT), whose borders take too long to find", maxPackets)

// pipeData is what is in a pipe; without parts it is bytes without borders.
type pipeData struct {
	data  []byte
	parts []pipePart
}

// ownPipe is a pipe of this process.
type ownPipe struct{ r, w int }

func newOwnPipe(size int) (ownPipe, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return ownPipe{}, fmt.Errorf("pipe2: %w", err)
	}
	own := ownPipe{p[0], p[1]}
	if size > 0 {
		if _, err := unix.FcntlInt(uintptr(own.w), unix.F_SETPIPE_SZ, size); err != nil {
			own.close()
			return ownPipe{}, fmt.Errorf("F_SETPIPE_SZ %d for a copy of its content: %w", size, err)
		}
	}
	return own, nil
}

func (p ownPipe) close() {
	unix.Close(p.r) // it held a copy only
	unix.Close(p.w)
}

// copyPipe copies the first n bytes of a pipe into one of our own.
func copyPipe(fd, n, size int) (ownPipe, error) {
	own, err := newOwnPipe(size)
	if err != nil {
		return own, err
	}
	// tee always begins at the head, so that everything has to fit at once.
	if got, err := unix.Tee(fd, own.w, n, unix.SPLICE_F_NONBLOCK); err != nil || int(got) != n {
		own.close()
		return own, fmt.Errorf("tee of %d bytes gave %d: %w", n, got, orShort(err))
	}
	return own, nil
}

// peek copies what is in a pipe and leaves it there.
func peek(fd int) (c pipeData, err error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return c, fmt.Errorf("FIONREAD: %w", err)
	}
	if n == 0 {
		return c, nil
	}
	size, err := capacity(fd)
	if err != nil {
		return c, err
	}
	master, err := copyPipe(fd, n, size)
	if err != nil {
		return c, err
	}
	defer master.close()
	return readParts(master, n, size)
}

// readParts reads a copy of a pipe's content of n bytes, and finds out its parts in more copies. A
// read goes on until the end of a packet, so what it returns is bytes, or a packet, or both.
func readParts(master ownPipe, n, size int) (c pipeData, err error) {
	own, err := copyPipe(master.r, n, size)
	if err != nil {
		return c, err
	}
	defer own.close()
	c.data = make([]byte, n)
	packets := 0
	for at := 0; at < n; {
		got, err := unix.Read(own.r, c.data[at:])
		if err != nil || got <= 0 {
			return c, fmt.Errorf("read a copy of its content at %d of %d bytes: %w", at, n, orShort(err))
		}
		end := at + got
		packet := end < n
		if !packet {
			if packet, err = isPacket(master, n, size, end-1); err != nil {
				return c, err
			}
		}
		border := end
		if packet {
			if packets++; packets > maxPackets {
				return c, errPackets
			}
			if border, err = packetStart(master, n, size, at, end); err != nil {
				return c, err
			}
		}
		if border > at {
			c.parts = append(c.parts, pipePart{Len: int32(border - at)})
		}
		if packet {
			c.parts = append(c.parts, pipePart{Len: int32(end - border), Packet: true})
		}
		at = end
	}
	if packets == 0 {
		c.parts = nil
	}
	return c, nil
}

// packetStart finds where in [at, end) the packet begins that ends there.
func packetStart(master ownPipe, n, size, at, end int) (int, error) {
	whole, err := isPacket(master, n, size, at)
	if err != nil || whole {
		return at, err
	}
	i := sort.Search(end-at, func(i int) bool {
		is, perr := isPacket(master, n, size, at+i)
		err = errors.Join(err, perr)
		return is
	})
	return at + i, err
}

// isPacket reports whether a byte of a pipe's content belongs to a packet: it moves it, in a copy,
// into a pipe of its own and writes another one behind it, which a read then returns or not.
func isPacket(master ownPipe, n, size, at int) (bool, error) {
	own, err := copyPipe(master.r, n, size)
	if err != nil {
		return false, err
	}
	defer own.close()
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(null)
	if err := move(own.r, null, at); err != nil {
		return false, err
	}
	one, err := newOwnPipe(0)
	if err != nil {
		return false, err
	}
	defer one.close()
	if err := move(own.r, one.w, 1); err != nil {
		return false, err
	}
	if _, err := unix.Write(one.w, []byte{0}); err != nil {
		return false, fmt.Errorf("write to a copy of its content: %w", err)
	}
	got, err := unix.Read(one.r, make([]byte, 2))
	if err != nil {
		return false, fmt.Errorf("read a copy of its content: %w", err)
	}
	return got == 1, nil
}

// move splices n bytes.
func move(from, to, n int) error {
	for n > 0 {
		got, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			return fmt.Errorf("splice a copy of its content: %w", orShort(err))
		}
		n -= int(got)
	}
	return nil
}

// checkParts checks parts that come from an image against the data.
func checkParts(parts []pipePart, data []byte) error {
	left := int64(len(data))
	for _, p := range parts {
		if p.Len <= 0 || p.Packet && int(p.Len) > os.Getpagesize() {
			return fmt.Errorf("the image has a packet or run of %d bytes", p.Len)
		}
		left -= int64(p.Len)
	}
	if len(parts) > 0 && left != 0 {
		return fmt.Errorf("the packets of the image and its %d bytes do not match", len(data))
	}
	return nil
}

// refill writes content into the pipe behind the write end fd, which must not block.
func refill(fd int, c pipeData) error {
	if err := checkParts(c.parts, c.data); err != nil {
		return err
	}
	if len(c.parts) == 0 {
		return writeAll(fd, c.data)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	at := 0
	for i, p := range c.parts {
		part := c.data[at : at+int(p.Len)]
		at += int(p.Len)
		switch {
		case p.Packet:
			err = writePacket(fd, flags, part)
		case i+1 < len(c.parts):
			err = writeApart(fd, part)
		default:
			err = writeAll(fd, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writePacket writes one packet and leaves the flags as they were.
func writePacket(fd, flags int, b []byte) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		return fmt.Errorf("F_SETFL O_DIRECT: %w", err)
	}
	err := writeAll(fd, b)
	if _, err2 := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags); err == nil && err2 != nil {
		err = fmt.Errorf("F_SETFL: %w", err2)
	}
	return err
}

// writeApart writes bytes so that the packet behind them does not become part of their last buffer,
// as it would if it fits there: what tee(2) brings is never added to.
func writeApart(fd int, b []byte) error {
	own, err := newOwnPipe(len(b) + os.Getpagesize())
	if err != nil {
		return err
	}
	defer own.close()
	if err := writeAll(own.w, b); err != nil {
		return err
	}
	if got, err := unix.Tee(own.r, fd, len(b), unix.SPLICE_F_NONBLOCK); err != nil || int(got) != len(b) {
		return fmt.Errorf("tee of %d bytes gave %d: %w", len(b), got, orShort(err))
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for done := 0; done < len(b); {
		n, err := unix.Write(fd, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing its content back (%d of %d bytes): %w", done, len(b), err)
		}
		done += n
	}
	return nil
}
