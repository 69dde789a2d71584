package kind

import (
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// A TCP connection that is over, on both sides, and of which the program has not read all that came.

// peekOver looks at the n bytes that wait.
func peekOver(fd, n int) ([]byte, error) {
	b := make([]byte, n)
	got, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_WAITALL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at what waits in it: %w", err)
	case got != n:
		return nil, fmt.Errorf("look at what waits in it: %d of %d bytes", got, n)
	}
	return b, nil
}

// loadUnread gets what waits to be read of endedRead.
func (r *inetRec) loadUnread(rec *image.File, e *Env) (err error) {
	if r.Ended != endedRead {
		return nil
	}
	if r.unread, err = e.Blob(rec.Blob); err != nil {
		return err
	}
	if len(r.unread) == 0 || len(r.unread) > maxTCPQueue {
		return fmt.Errorf("the socket %q in the image: %d bytes wait in it", rec.Path, len(r.unread))
	}
	return nil
}

// makeUnread makes such a socket: it connects to a listener of ours, which sends the bytes; then both
// ends are shut.
func (r *inetRec) makeUnread() (fd int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a connection that is over and not read: %w", err)
		}
	}()
	l, to, err := r.listener()
	if err != nil {
		return -1, err
	}
	defer unix.Close(l)
	if fd, err = r.connectTo(to); err != nil {
		return -1, err
	}
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err == nil {
		err = errors.Join(sendUnread(fd, a, r.unread), unix.Close(a))
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

// connectTo makes a socket that is connected to a listener of ours.
func (r *inetRec) connectTo(to []byte) (fd int, err error) {
	fd, err = unix.Socket(int(r.Family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err = setOpts(fd, r.Opts, optEarly); err == nil {
		// The address it had, if this host has it. Others may have the port, too: bind(2) may refuse it then, in repair
		// mode it does not.
		if len(r.Name) > 0 && bindShared(fd, r.Name) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // for the bind
			_ = addressed(unix.SYS_BIND, fd, r.Name)
		}
		if err = addressed(unix.SYS_CONNECT, fd, to); err != nil {
			err = fmt.Errorf("connect to %s: %w", addrText(to), err)
		}
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

// sendUnread sends bytes through a to fd and waits until both are shut.
func sendUnread(fd, a int, b []byte) error {
	want := len(b)
	// The window may be smaller than it was; it grows with the buffer, which gets its size back.
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return fmt.Errorf("SO_RCVBUF: %w", err)
	}
	lock, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err != nil {
		return fmt.Errorf("SO_BUF_LOCK: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size+4*want); err != nil {
		return fmt.Errorf("SO_RCVBUFFORCE: %w", err)
	}
	shut := false
	for range 5000 {
		if len(b) > 0 {
			n, err := unix.SendmsgN(a, b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if err != nil && err != unix.EAGAIN {
				return fmt.Errorf("send what was not read: %w", err)
			}
			b = b[max(n, 0):]
		}
		if len(b) == 0 && !shut {
			if err := errors.Join(unix.Shutdown(a, unix.SHUT_WR), unix.Shutdown(fd, unix.SHUT_WR)); err != nil {
				return fmt.Errorf("shutdown: %w", err)
			}
			shut = true
		}
		in, err := readTCPInfo(fd)
		if err != nil {
			return err
		}
		// As the kernel sees it: TIME_WAIT is no socket any more.
		if shut && in.state == tcpClose && queued(fd, unix.TIOCINQ) == want {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2); err != nil {
				return fmt.Errorf("SO_RCVBUFFORCE: %w", err)
			}
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, lock)
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("it does not come to its end; a firewall on the loopback device may be in the way")
}
