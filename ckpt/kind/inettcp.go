package kind

import (
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// States of TCP, of linux/tcp_states.h; stateListen stands in unixdiag.go.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpClose       = 7
)

// How a TCP connection has ended.
const (
	endedOver  = 1 // it is over: reads end of file, writing fails with EPIPE
	endedReset = 2 // and ECONNRESET is still to be reported
	endedRead  = 3 // it is over, and what waits to be read is the blob
	endedLast  = endedRead
)

// tcpInfo is what TCP_INFO tells that is needed here.
type tcpInfo struct {
	state   uint8
	waiting uint32 // of a listening socket: connections that wait to be accepted
	backlog uint32 // of listen(2)

	options, sndScale, rcvScale uint8 // of a connection
}

func readTCPInfo(fd int) (tcpInfo, error) {
	var b [104]byte // struct tcp_info as it was at first
	n := uint32(len(b))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		return tcpInfo{}, fmt.Errorf("TCP_INFO: %w", errno)
	}
	if n < 32 {
		return tcpInfo{}, fmt.Errorf("TCP_INFO has %d bytes", n)
	}
	// tcpi_unacked and tcpi_sacked: of listening sockets the two ends of the queue
	return tcpInfo{state: b[0], waiting: binary.NativeEndian.Uint32(b[24:]), backlog: binary.NativeEndian.Uint32(b[28:]),
		options: b[5], sndScale: b[6] & 15, rcvScale: b[6] >> 4}, nil
}

// tcpFindings tells what of a TCP socket cannot be kept.
func (f *Found) tcpFindings(s *Scene) []image.Finding {
	in, err := f.tcpInfo()
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	ready, err := f.polled(unix.POLLIN | unix.POLLRDHUP)
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	giveUp := s.Policy.Get("tcp") == "reset" || s.Policy.Get("tcp") == "close"
	switch {
	case in.state == stateListen && in.waiting > 0:
		return f.acceptFindings(s, in.waiting)
	case in.state == stateListen:
		return nil
	case in.state == tcpClose && queued(f.FD, unix.TIOCINQ) > maxTCPQueue:
		return []image.Finding{f.refuse("its connection is over, and more than 64 MiB that came are not read", "let the program read it")}
	case in.state == tcpClose && ready&unix.POLLERR != 0:
		return []image.Finding{f.refuse("an error waits to be reported by it (SO_ERROR), and only the program may look at that", "let the program use it once, then try again")}
	case in.state == tcpClose:
		return nil
	}
	at, why := f.connection(s, in)
	switch {
	case why == "":
		return nil
	case !giveUp:
		others := "tcp=reset or tcp=close"
		if at == outside && s.Policy.Get("tcp") != "keep" {
			others = "tcp=keep, " + others
		}
		return []image.Finding{f.refuse(why, closeSocket+", or choose --policy "+others)}
	}
	return []image.Finding{f.lose(why+"; the connection will have ended, with what is under way on it (policy tcp="+s.Policy.Get("tcp")+")", closeSocket)}
}

// connection tells whether a connection can be kept, and if not, why.
func (f *Found) connection(s *Scene, in tcpInfo) (at otherEnd, why string) {
	if in.state == tcpSynSent || in.state == tcpSynRecv {
		return inTree, "it is still being connected"
	}
	if at, why = f.otherEnd(s, f.ofInet().protocol); at == outside && s.Policy.Get("tcp") == "keep" {
		why = ""
	}
	if why == "" && !f.quiet() {
		why = awkwardConn(f.FD)
	}
	return at, why
}

func waitText(n uint32) string {
	if n == 1 {
		return "a connection waits"
	}
	return fmt.Sprintf("%d connections wait", n)
}

// readTCP fills in what is TCP's.
func (r *inetRec) readTCP(f *Found, s *Scene) (data []byte, err error) {
	in, err := f.tcpInfo()
	if err != nil {
		return nil, err
	}
	if in.state == stateListen {
		r.Listening, r.Backlog = true, in.backlog
		return nil, nil
	}
	// What is outside sends until its packets are kept away. What has come since Check counts, or is refused now.
	if err := s.peekAll(); err != nil {
		return nil, err
	}
	if err := image.Refusals(f.tcpFindings(s)); err != nil {
		return nil, err
	}
	if in, err = f.tcpInfo(); err != nil {
		return nil, err
	}
	ready, err := f.polled(unix.POLLRDHUP)
	if err != nil {
		return nil, err
	}
	switch {
	case in.state == tcpClose && ready&unix.POLLRDHUP != 0 && len(r.Name) > 0:
		r.Ended = endedOver
		if n := queued(f.FD, unix.TIOCINQ); n > 0 {
			r.Ended = endedRead
			data, err = peekOver(f.FD, n)
		}
	case in.state != tcpClose:
		at, why := f.connection(s, in)
		if why == "" {
			if data, err = r.readConn(f, s); err != nil {
				return nil, err
			}
			r.Conn.Orphan, r.Conn.Outside = at == nowhere, at == outside
			r.dropConnectionOpts()
			if c := s.keptWaiting(endsOfConn(r.Name, r.Conn.Peer)); c != nil {
				if data, err = r.addWaiting(c, data); err != nil {
					return nil, &image.RefusedError{Findings: []image.Finding{f.refuse(err.Error(), "try again")}}
				}
				return data, nil
			}
			return data, s.gap(f, r)
		}
		r.Ended = endedOver
		if s.Policy.Get("tcp") == "reset" {
			r.Ended = endedReset
		}
	}
	if r.Ended != 0 {
		r.dropConnectionOpts()
	}
	return data, err
}

// dropConnectionOpts forgets options that in a connection tell of the connection and not of what was
// set: they cannot be set, and mean nothing any more.
func (r *inetRec) dropConnectionOpts() {
	kept := r.Opts[:0]
	for _, o := range r.Opts {
		if o.Level == unix.SOL_TCP && (o.Name == unix.TCP_MAXSEG || o.Name == unix.TCP_WINDOW_CLAMP || o.Name == unix.TCP_CORK) {
			continue
		}
		kept = append(kept, o)
	}
	r.Opts = kept
}

// makeEnded makes a socket whose connection has ended: it connects to a listener of ours on the same
// host, which resets the connection.
func (r *inetRec) makeEnded() (int, error) {
	l, to, err := r.listener()
	if err != nil {
		return -1, err
	}
	defer unix.Close(l)
	fd, err := r.endedSocket(l, to)
	if err != nil {
		return -1, fmt.Errorf("make a connection that has ended: %w", err)
	}
	return fd, nil
}

// listener makes a socket that listens on any port of the address that the record names, or else
// of this host.
func (r *inetRec) listener() (fd int, name []byte, err error) {
	for _, addr := range [][]byte{anyPort(r.Name), loopback(r.Family)} {
		fd, err = unix.Socket(int(r.Family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, nil, fmt.Errorf("socket: %w", err)
		}
		if err = addressed(unix.SYS_BIND, fd, addr); err == nil {
			if err = unix.Listen(fd, 1); err == nil {
				if name, err = sockName(fd, unix.SYS_GETSOCKNAME); err == nil {
					return fd, name, nil
				}
			}
		}
		unix.Close(fd) // never used
	}
	return -1, nil, fmt.Errorf("listen for a moment: %w", err)
}

func (r *inetRec) endedSocket(l int, to []byte) (fd int, err error) {
	if fd, err = r.connectTo(to); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd) // never used
			fd = -1
		}
	}()
	a, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return fd, fmt.Errorf("accept: %w", err)
	}
	err = unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // close resets it
	unix.Close(a)
	if err != nil {
		return fd, err
	}
	if err := awaitReset(fd); err != nil {
		return fd, err
	}
	if r.Ended == endedOver { // reported here
		_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	}
	return fd, nil
}

// awaitReset waits until a reset has come through the loopback device.
func awaitReset(fd int) error {
	for range 1000 {
		ready, err := polled(fd, unix.POLLRDHUP)
		if err != nil {
			return err
		}
		if ready&unix.POLLERR != 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("it is not reset within a second; a firewall on the loopback device may be in the way")
}
