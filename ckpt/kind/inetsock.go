package kind

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// inetSock is a socket of IPv4 or IPv6: TCP, MPTCP, UDP, UDP-Lite, ping or raw. A TCP socket that
// listens, is bound or not is made anew; so are connections within the tree (inetconn.go), and those
// that have ended. A connection to somebody outside is refused, or by the policy tcp kept (inetkeep.go) or given up.
//
// What nobody can read and so is not kept: programs of SO_ATTACH_REUSEPORT_CBPF and _EBPF, and of
// keys of TCP_FASTOPEN_KEY that differ from the system's.
type inetSock struct{}

// inetRec is the record of one socket.
type inetRec struct {
	Family    int32     `cbor:"1,keyasint"`           // AF_INET or AF_INET6
	Type      int32     `cbor:"2,keyasint"`           // SOCK_STREAM, _DGRAM or _RAW
	Protocol  int32     `cbor:"3,keyasint"`           // IPPROTO_TCP …
	Name      []byte    `cbor:"4,keyasint,omitempty"` // struct sockaddr of getsockname(2); none: not bound
	Peer      []byte    `cbor:"5,keyasint,omitempty"` // of getpeername(2), of datagram and raw sockets
	Listening bool      `cbor:"6,keyasint,omitempty"`
	Backlog   uint32    `cbor:"7,keyasint,omitempty"` // of listen(2)
	Ended     uint8     `cbor:"8,keyasint,omitempty"` // of a TCP connection, see endedByPeer …
	Opts      []sockOpt `cbor:"9,keyasint,omitempty"`
	Filter    []byte    `cbor:"10,keyasint,omitempty"` // SO_ATTACH_FILTER, struct sock_filter one after the other
	Groups    []group   `cbor:"11,keyasint,omitempty"` // multicast groups that it is in
	Mode      uint32    `cbor:"12,keyasint,omitempty"` // of the descriptor's inode
	UID       uint32    `cbor:"13,keyasint,omitempty"`
	GID       uint32    `cbor:"14,keyasint,omitempty"`
	Conn      *tcpConn  `cbor:"15,keyasint,omitempty"` // what waits in it is the blob

	unread []byte // of endedRead
}

const (
	ipprotoMPTCP   = 262 // of linux/in.h
	ipprotoUDPLite = 136
)

func (inetSock) Name() string { return "inet" }

// inetKind is what a socket was made with.
type inetKind struct {
	family, typ, protocol int
	known                 bool // it is one that is kept
}

// ofInet returns what a socket was made with, which never changes.
func (f *Found) ofInet() *inetKind {
	if f.inet == nil {
		k := &inetKind{}
		k.family, k.typ, k.protocol, k.known = inetType(f.FD)
		f.inet = k
	}
	return f.inet
}

// inetType returns what a socket was made with; ok is false if it is none of this kind.
func inetType(fd int) (family, typ, protocol int, ok bool) {
	var v [3]int
	for i, opt := range [...]int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		var err error
		if v[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil {
			return 0, 0, 0, false
		}
	}
	return v[0], v[1], v[2], inetKnown(v[0], v[1], v[2])
}

// inetKnown reports whether such sockets are kept.
func inetKnown(family, typ, protocol int) bool {
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return false
	}
	switch typ {
	case unix.SOCK_STREAM:
		return protocol == unix.IPPROTO_TCP || protocol == ipprotoMPTCP
	case unix.SOCK_DGRAM:
		return protocol == unix.IPPROTO_UDP || protocol == ipprotoUDPLite || protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
	case unix.SOCK_RAW:
		return protocol >= 0 && protocol < 256
	}
	return false
}

func (inetSock) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK || f.Flags&unix.O_PATH != 0 {
		return false
	}
	if d := f.domain(); d != unix.AF_INET && d != unix.AF_INET6 {
		return false
	}
	return f.ofInet().known
}

func (inetSock) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	kind := f.ofInet()
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY); pid != 0 {
		all = append(all, f.refuse(fmt.Sprintf("%s, which is outside the tree, has this socket too and keeps its address", processName(pid)),
			"close it there, or checkpoint a tree that holds that process too"))
	}
	fresh, err := s.freshOf(kind)
	if err != nil {
		return append(all, f.refuse(err.Error(), closeSocket))
	}
	var barred []string
	if f.known != nil {
		barred = f.known.barred
	} else {
		barred = barredOpts(f.FD, fresh)
	}
	for _, text := range barred {
		all = append(all, f.refuse(fmt.Sprintf("its option %s cannot be set again", text), closeSocket))
	}
	if _, err := f.filter(); err != nil {
		all = append(all, f.refuse(err.Error(), "detach it (SO_DETACH_FILTER)"))
	}
	if kind.typ == unix.SOCK_STREAM {
		return append(all, f.tcpFindings(s)...)
	}
	if _, err := s.groups(f); err != nil {
		all = append(all, f.refuse(err.Error(), "leave the group before the checkpoint"))
	}
	return append(all, f.datagramFindings(s)...)
}

// datagramFindings tells of what waits in a socket without connections.
func (f *Found) datagramFindings(s *Scene) []image.Finding {
	ready, err := polled(f.FD, unix.POLLIN)
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	var what string
	switch {
	case ready&unix.POLLERR != 0:
		what = "an error waits to be reported by it"
	case ready&unix.POLLIN != 0:
		what = "datagrams wait in it that the program has not read yet"
	default:
		return nil
	}
	if s.Policy.Get("udp") == "refuse" {
		return []image.Finding{f.refuse(what, "try again, or choose --policy udp=drop")}
	}
	return []image.Finding{f.lose(what+": they are dropped, as a network may (policy udp=drop)", "choose --policy udp=refuse to wait until it has none")}
}

func (inetSock) Dump(f *Found, s *Scene, rec *image.File) error {
	kind := f.ofInet()
	r := &inetRec{Family: int32(kind.family), Type: int32(kind.typ), Protocol: int32(kind.protocol), Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid}
	data, err := r.read(f, s)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	if len(data) > 0 {
		rec.Blob = s.Blob(data)
	}
	return encodeRec(rec, r)
}

// read fills in the record. data is what waits in a connection.
func (r *inetRec) read(f *Found, s *Scene) (data []byte, err error) {
	if r.Opts, err = s.options(f); err != nil {
		return nil, err
	}
	if r.Filter, err = f.filter(); err != nil {
		return nil, err
	}
	if r.Name, err = f.sockAddr(unix.SYS_GETSOCKNAME); err != nil {
		return nil, err
	}
	if !r.bound() {
		r.Name = nil
	}
	if r.Type == unix.SOCK_STREAM {
		return r.readTCP(f, s)
	}
	r.Peer, err = f.sockAddr(unix.SYS_GETPEERNAME)
	if errors.Is(err, unix.ENOTCONN) && (r.Type == unix.SOCK_RAW || r.Protocol == unix.IPPROTO_ICMP || r.Protocol == unix.IPPROTO_ICMPV6) {
		r.Peer, err = r.rawPeer(f.Stat.Ino)
	}
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		return nil, err
	}
	r.Groups, err = s.groups(f)
	return nil, err
}

func (inetSock) CheckOpen(rec *image.File, e *Env) (string, error) {
	r, err := inetRecord(rec)
	if err != nil {
		return "", err
	}
	if r.Conn != nil && r.Conn.Outside {
		if err := onHost(r.Name); err != nil {
			return "", r.taken(err)
		}
	}
	if len(r.Name) == 0 || r.Ended != 0 || r.Conn != nil {
		return "", nil
	}
	fd, err := r.bindNew()
	if err != nil {
		return "", r.taken(err)
	}
	unix.Close(fd) // only the question counted
	return "", nil
}

// inetRecord reads a record and checks it.
func inetRecord(rec *image.File) (*inetRec, error) {
	r := &inetRec{}
	if err := decodeRec(rec, r); err != nil {
		return nil, err
	}
	if err := r.valid(); err != nil {
		return nil, hostile("the socket %q in the image: %w", rec.Path, err)
	}
	return r, nil
}

// valid checks what the record says, before anything of it is used.
func (r *inetRec) valid() error {
	const mostGroups = 10000
	switch {
	case !inetKnown(int(r.Family), int(r.Type), int(r.Protocol)):
		return fmt.Errorf("there is no socket of family %d, type %d and protocol %d", r.Family, r.Type, r.Protocol)
	case len(r.Filter) > maxFilter*filterSize || len(r.Filter)%filterSize != 0:
		return fmt.Errorf("its filter has %d bytes", len(r.Filter))
	case len(r.Groups) > mostGroups:
		return fmt.Errorf("it is in %d groups", len(r.Groups))
	case r.Ended > endedLast || r.Ended != 0 && (r.Type != unix.SOCK_STREAM || r.Listening || len(r.Name) == 0):
		return fmt.Errorf("a socket cannot have ended like %d", r.Ended)
	case r.Listening && r.Type != unix.SOCK_STREAM || r.Type == unix.SOCK_STREAM && len(r.Peer) > 0:
		return errors.New("it is of a type that cannot do what it does")
	}
	for _, a := range [][]byte{r.Name, r.Peer} {
		if err := r.validAddr(a); err != nil {
			return err
		}
	}
	for i := range r.Groups {
		if err := r.Groups[i].valid(r.Family); err != nil {
			return err
		}
	}
	if err := r.validConn(); err != nil {
		return err
	}
	return checkOpts(r.Opts)
}

func (inetSock) Open(rec *image.File, e *Env) (int, error) {
	r, err := inetRecord(rec)
	if err != nil {
		return -1, err
	}
	if r.Type == unix.SOCK_STREAM {
		w, err := shared(e, "tcp sockets", func() (*tcpWorld, error) { return makeTCPWorld(e) })
		if err != nil {
			return -1, err
		}
		if w != nil {
			fd, err := dup(w.nodes[refOf(e, rec)].fd)
			if err != nil {
				return -1, err
			}
			return finished(fd, rec.Flags, 0, 0)
		}
	}
	if err := r.loadUnread(rec, e); err != nil {
		return -1, err
	}
	fd, err := r.make()
	if err != nil {
		return -1, err
	}
	if err := r.finish(fd, e.Warn); err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return finished(fd, rec.Flags, 0, 0)
}

// make makes the socket, bound and in its state.
func (r *inetRec) make() (int, error) {
	switch r.Ended {
	case 0:
	case endedRead:
		return r.makeUnread()
	default:
		return r.makeEnded()
	}
	fd, err := r.bindNew()
	if err != nil {
		return -1, r.taken(err)
	}
	switch {
	case r.Listening:
		if err = unix.Listen(fd, int(min(r.Backlog, 1<<31-1))); err != nil {
			err = fmt.Errorf("listen on %s: %w", addrText(r.Name), err)
		}
	case len(r.Peer) > 0:
		if err = addressed(unix.SYS_CONNECT, fd, r.Peer); err != nil {
			err = fmt.Errorf("connect to %s: %w", addrText(r.Peer), err)
		}
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

// bindNew makes a socket and gives it its address.
func (r *inetRec) bindNew() (int, error) {
	fd, err := unix.Socket(int(r.Family), int(r.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(r.Protocol))
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = setOpts(fd, r.Opts, optEarly)
	if err == nil && len(r.Name) > 0 {
		// Connections of the old process may linger on the port; it is on again below if it was.
		if r.Type == unix.SOCK_STREAM {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, r.reuses())
		}
		if err == nil {
			err = r.bind(fd)
		}
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return fd, nil
}

// bind gives a socket its address.
func (r *inetRec) bind(fd int) error {
	err := addressed(unix.SYS_BIND, fd, r.Name)
	if err != unix.EADDRINUSE || r.Type != unix.SOCK_STREAM || portHolder(r.Protocol, addrPort(r.Name).Port()) != 0 {
		return err
	}
	if err2 := r.endLingering(); err2 != nil {
		return errors.Join(err, err2)
	}
	return addressed(unix.SYS_BIND, fd, r.Name)
}

// finish sets what is set when a socket is in its state. A socket that came from accept(2) can have
// options that nobody can set so: of a connection, whose restore they would forbid after the original
// was killed, they are told to warn and not refused.
func (r *inetRec) finish(fd int, warn func(format string, args ...any)) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, r.reuses()); err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	for i := range r.Groups {
		if err := r.Groups[i].join(fd); err != nil {
			return err
		}
	}
	tell := func(err error) error {
		if err != nil && (r.Conn != nil || r.Ended != 0) {
			warn("the TCP socket from %s: %v", addrText(r.Name), err)
			return nil
		}
		return err
	}
	if err := tell(setOpts(fd, r.Opts, optLate)); err != nil {
		return err
	}
	if err := attachFilter(fd, r.Filter); err != nil {
		return err
	}
	if err := tell(setOpts(fd, r.Opts, optLast)); err != nil {
		return err
	}
	if err := tell(verifyOpts(fd, r.Opts, r.Conn != nil)); err != nil {
		return err
	}
	return ownSocket(fd, r.UID, r.GID, r.Mode)
}
