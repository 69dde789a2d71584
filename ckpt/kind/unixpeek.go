package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// unixMsg is a message in the queue of a unix socket. In a stream socket it is a run of bytes from
// one sender with the files that came with it, and what stands between two runs is a mark.
type unixMsg struct {
	Len  int32     `cbor:"1,keyasint,omitempty"` // bytes of the blob
	Cred *unixCred `cbor:"2,keyasint,omitempty"` // SCM_CREDENTIALS; nil: it carries none
	From []byte    `cbor:"3,keyasint,omitempty"` // name of the socket that sent it
	// Mark: an out-of-band byte stands before it, see SIOCATMARK of unix(7).
	Mark  unixMark       `cbor:"4,keyasint,omitempty"`
	Files []image.ObjRef `cbor:"5,keyasint,omitempty"` // SCM_RIGHTS

	fds []int // those files, ours
}

// unixMark is what is left of a byte that was sent with MSG_OOB.
type unixMark uint8

const (
	noMark  unixMark = iota
	readOOB          // the place of one that was read
	liveOOB          // one that was not: the first byte of the run
)

// unixCred is struct ucred.
type unixCred struct {
	PID    int32    `cbor:"1,keyasint"`
	UID    uint32   `cbor:"2,keyasint"`
	GID    uint32   `cbor:"3,keyasint"`
	Groups []uint32 `cbor:"4,keyasint,omitempty"` // of SO_PEERGROUPS
}

const (
	// maxUnixMsgs bounds the messages of one queue: each costs a look of its own.
	maxUnixMsgs = 4096
	// maxUnixQueue bounds the bytes of one queue.
	maxUnixQueue = 64 << 20

	overflowID = 65534 // what the kernel shows of a message without credentials

	maxControl = 2048 // SCM_MAX_FD files, credentials, a pidfd and a security label
)

// peekQueue reads what waits in a unix socket and leaves it there. A message behind the first can be
// seen only through SO_PEEK_OFF, and credentials only with SO_PASSCRED, so these are set and put back
// by runApart. The processes of the tree must stand still. The files that are under way are
// among our own descriptors afterwards.
func (s *Scene) peekQueue(fd int, typ uint8, ready int16) (data []byte, all []unixMsg, err error) {
	defer func() {
		if err != nil {
			closeMsgs(all)
			all = nil
		}
	}()
	if ready&unix.POLLIN == 0 {
		return nil, nil, nil
	}
	p, err := newPeeker(s, fd, typ)
	if err != nil {
		return nil, nil, err
	}
	if p.stream {
		return p.stretch(ready&unix.POLLPRI != 0) // never beyond its end, which gives an error that waits
	}
	if ready&unix.POLLERR != 0 { // reading would take the error out first
		if p.queued > 0 {
			return nil, nil, errors.New("messages wait in it behind an error (SO_ERROR), and cannot be looked at without taking it out")
		}
		return nil, nil, nil
	}
	for off := -1; ; off = len(data) {
		m, got, err := p.look(off, p.buf, true)
		if err == unix.EAGAIN || err == nil && len(got) == 0 && p.hdr.Controllen == 0 { // even an empty message has credentials
			return data, all, nil
		}
		if err != nil {
			return data, all, fmt.Errorf("look at message %d that waits in it: %w", len(all)+1, err)
		}
		data, all = append(data, got...), append(all, m)
		if err := queueTooLong(data, all); err != nil {
			return data, all, err
		}
	}
}

func queueTooLong(data []byte, all []unixMsg) error {
	if len(all) > maxUnixMsgs {
		return fmt.Errorf("more than %d messages wait in it", maxUnixMsgs)
	}
	if len(data) > maxUnixQueue {
		return fmt.Errorf("more than %d bytes wait in it", maxUnixQueue)
	}
	return nil
}

func closeMsgs(all []unixMsg) {
	for i := range all {
		closeOwn(all[i].fds)
		all[i].fds = nil
	}
}

// closeOwn closes descriptors of ours that nobody was given.
func closeOwn(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// polled is what poll(2) says of a descriptor, without waiting.
func polled(fd int, events int16) (int16, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return p[0].Revents, err
		}
	}
}

// peeker looks at the queue of one socket. What the kernel writes to lies on the heap.
type peeker struct {
	scene   *Scene
	fd      int
	stream  bool
	queued  int // bytes in it, or in the first message (FIONREAD)
	buf     []byte
	control []byte
	name    *[unix.SizeofSockaddrUnix]byte
	iov     *unix.Iovec
	hdr     *unix.Msghdr
	vals    []int32 // of the options: those to see all, and those before
	opts    []int
}

func newPeeker(s *Scene, fd int, typ uint8) (*peeker, error) {
	p := &peeker{scene: s, fd: fd, stream: typ == unix.SOCK_STREAM, control: make([]byte, maxControl), name: new([unix.SizeofSockaddrUnix]byte),
		iov: new(unix.Iovec), hdr: new(unix.Msghdr)}
	var err error
	if p.queued, err = unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil {
		return nil, fmt.Errorf("FIONREAD: %w", err)
	}
	size := p.queued
	if !p.stream {
		// A message is never longer than the buffer it was sent from.
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		if err != nil {
			return nil, fmt.Errorf("SO_SNDBUF: %w", err)
		}
		size = max(n, 256<<10)
	}
	p.buf = make([]byte, min(size, maxUnixQueue)+1)
	for _, o := range [...]struct {
		opt  int
		want int32
	}{{unix.SO_PASSCRED, 1}, {unix.SO_PASSRIGHTS, 1}, {unix.SO_PASSSEC, 0}, {unix.SO_PASSPIDFD, 0}, {unix.SO_OOBINLINE, 1}, {unix.SO_PEEK_OFF, 0}} {
		have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.opt)
		if err == unix.ENOPROTOOPT {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read its option %d: %w", o.opt, err)
		}
		if o.opt == unix.SO_PASSCRED || o.opt == unix.SO_PEEK_OFF || int32(have) != o.want {
			p.opts, p.vals = append(p.opts, o.opt), append(p.vals, o.want, int32(have))
		}
	}
	return p, nil
}

// look returns the message at an offset, or the first if that is -1. Of a stream that is all up to the next border; without
// creds those of different senders are none. The kernel is told that to has room for everything.
func (p *peeker) look(off int, to []byte, creds bool) (m unixMsg, data []byte, err error) {
	p.vals[0] = 0 // SO_PASSCRED comes first
	if creds {
		p.vals[0] = 1
	}
	p.vals[len(p.vals)-2] = int32(off) // SO_PEEK_OFF comes last
	p.iov.Base, p.iov.Len = &to[0], uint64(len(p.buf))
	*p.hdr = unix.Msghdr{Name: &p.name[0], Namelen: uint32(len(p.name)), Iov: p.iov, Iovlen: 1, Control: &p.control[0]}
	p.hdr.SetControllen(len(p.control))
	var calls []call
	set := func(i, which int) {
		at := uintptr(unsafe.Pointer(&p.vals[2*i+which]))
		calls = append(calls, call{nr: unix.SYS_SETSOCKOPT, args: [6]uintptr{uintptr(p.fd), unix.SOL_SOCKET, uintptr(p.opts[i]), at, 4}})
	}
	for i := range p.opts {
		set(i, 0)
	}
	recv := len(calls)
	const flags = unix.MSG_PEEK | unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC | unix.MSG_TRUNC
	calls = append(calls, call{nr: unix.SYS_RECVMSG, args: [6]uintptr{uintptr(p.fd), uintptr(unsafe.Pointer(p.hdr)), flags}})
	for i := range p.opts {
		set(i, 1)
	}
	err = p.scene.runApart(calls)
	runtime.KeepAlive(p)
	if err != nil {
		return m, nil, err
	}
	for i := range calls {
		if err := calls[i].err(); err != nil && i != recv {
			return m, nil, fmt.Errorf("setsockopt: %w", err)
		}
	}
	if err := calls[recv].err(); err != nil {
		return m, nil, err
	}
	n := calls[recv].ret
	if m, err = p.message(); err == nil && n > len(to) || p.hdr.Flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("a message of %d bytes is cut off: %w", n, unix.EMSGSIZE)
	}
	if err != nil {
		closeOwn(m.fds)
		return m, nil, err
	}
	m.Len = int32(n)
	return m, to[:n], nil
}

// message reads name and control data of what was received.
func (p *peeker) message() (m unixMsg, err error) {
	if n := int(p.hdr.Namelen); n > 2 && n <= len(p.name) {
		m.From = append([]byte(nil), p.name[2:n]...)
	}
	msgs, err := unix.ParseSocketControlMessage(p.control[:min(len(p.control), int(p.hdr.Controllen))])
	if err != nil {
		return m, err
	}
	for i := range msgs {
		c := &msgs[i]
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_RIGHTS:
			fds, rerr := unix.ParseUnixRights(c)
			m.fds, err = append(m.fds, fds...), errors.Join(err, rerr)
		case unix.SCM_CREDENTIALS:
			if len(c.Data) < 12 {
				return m, errors.New("its credentials are cut off")
			}
			ne := binary.NativeEndian
			cred := unixCred{PID: int32(ne.Uint32(c.Data)), UID: ne.Uint32(c.Data[4:]), GID: ne.Uint32(c.Data[8:])}
			if cred.PID != 0 || cred.UID != overflowID || cred.GID != overflowID {
				m.Cred = &cred
			}
		}
	}
	return m, err
}
