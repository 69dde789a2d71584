package kind

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// unixSock is a socket of the family AF_UNIX. Those of a tree are made as a whole, see unixworld.go:
//
//  1. What SO_PEERCRED tells is noted when two sockets are connected, so a pair is made by the
//     process that it names, which is there by then (Later), under the user it had.
//  2. Names, and what waits in the queues: sent by the other end once more.
//  3. Ends that were closed or shut down, options, owner.
//
// What nobody can look at is refused: data on a connection that was not accepted yet, messages behind
// an error, an error of a datagram socket. Not kept are borders in a stream that no reader can tell,
// the place of an out-of-band byte that was read if it lies right behind files or at the end,
// timestamps of what waits (SO_TIMESTAMP), and SO_COOKIE.
type unixSock struct{}

// unixRec is the record of one socket.
type unixRec struct {
	Type int32  `cbor:"1,keyasint"`           // SOCK_STREAM, _DGRAM or _SEQPACKET
	Ino  uint64 `cbor:"2,keyasint"`           // its number
	Peer uint64 `cbor:"3,keyasint,omitempty"` // that of the other end, which is in the image too
	// Connected: there was another end. If Peer is 0 it was closed.
	Connected bool  `cbor:"4,keyasint,omitempty"`
	Shutdown  uint8 `cbor:"5,keyasint,omitempty"` // 1: reads end of file, 2: cannot write
	// Reset: ECONNRESET waits to be reported, as the other end was closed with unread data.
	Reset bool `cbor:"6,keyasint,omitempty"`

	Mode uint32    `cbor:"7,keyasint,omitempty"` // of the descriptor's inode
	UID  uint32    `cbor:"8,keyasint,omitempty"`
	GID  uint32    `cbor:"9,keyasint,omitempty"`
	Cred *unixCred `cbor:"10,keyasint,omitempty"` // SO_PEERCRED

	Opts []unixOpt `cbor:"11,keyasint,omitempty"`
	Msgs []unixMsg `cbor:"12,keyasint,omitempty"` // what waits in it; the bytes are the blob

	Name      []byte    `cbor:"13,keyasint,omitempty"` // sun_path as getsockname(2) tells it
	File      *unixFile `cbor:"14,keyasint,omitempty"` // of a name that does not begin with NUL
	Accepted  bool      `cbor:"15,keyasint,omitempty"` // it came from accept(2), and has the name of the one that listened
	Listening bool      `cbor:"16,keyasint,omitempty"`
	Backlog   uint32    `cbor:"17,keyasint,omitempty"` // of listen(2)
	Waiting   []uint64  `cbor:"18,keyasint,omitempty"` // numbers of those that connected to it and were not accepted yet
	By        *unixCred `cbor:"19,keyasint,omitempty"` // who connected, of one that waits
	PeerName  []byte    `cbor:"20,keyasint,omitempty"` // the name of the other end, if that was closed
	Filter    []byte    `cbor:"23,keyasint,omitempty"` // SO_ATTACH_FILTER: struct sock_filter
	Reconnect bool      `cbor:"22,keyasint,omitempty"` // a datagram socket that is connected to PeerName, outside the tree
	// Ended are the processes of Cred and Msgs that had ended, ascending; 21 was only their ids.
	Ended []unixEnded `cbor:"24,keyasint,omitempty"`
}

// unixEnded is a process that had ended.
type unixEnded struct {
	PID    int32  `cbor:"1,keyasint"`
	Status uint32 `cbor:"2,keyasint,omitempty"` // its wait status, which SO_PEERPIDFD can tell; 0 also if it is not known
}

const closeSocket = "close the connection before the checkpoint and open it again afterwards"

func (unixSock) Name() string { return "unix" }

func (unixSock) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK || f.Flags&unix.O_PATH != 0 {
		return false
	}
	return f.domain() == unix.AF_UNIX
}

// domain is the address family of a socket, which never changes; -1: it is none, or opened with O_PATH.
func (f *Found) domain() int {
	if f.family == nil {
		family, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			family = -1
		}
		f.family = &family
	}
	return *f.family
}

// socket is what the kernel tells of the unix socket f.
func (s *Scene) socket(f *Found) (*unixInfo, error) {
	s.sockDev = f.Stat.Dev // all are of one filesystem
	if s.sockets == nil {
		var err error
		if s.sockets, err = unixSockets(); err != nil {
			return nil, err
		}
	}
	if u := s.sockets[uint32(f.Stat.Ino)]; u != nil {
		return u, nil
	}
	return nil, errors.New("the kernel does not list it among the unix sockets: it is of another network namespace")
}

// peer finds the other end of a socket in the tree, or nil.
func (s *Scene) peer(u *unixInfo) *Found { return s.socketByNumber(s.sockDev, u.Peer) }

// socketByNumber finds a socket of the tree by its inode number, or nil.
func (s *Scene) socketByNumber(dev uint64, ino uint32) *Found {
	s.sharing(&Found{})
	for _, g := range s.inodes[[2]uint64{dev, uint64(ino)}] {
		return g
	}
	return nil
}

func (unixSock) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	u, err := s.socket(f)
	if err != nil {
		return append(all, f.refuse(err.Error(), closeSocket))
	}
	name, file, err := s.nameOf(f)
	if err != nil {
		return append(all, f.refuse(err.Error(), closeSocket))
	}
	all = append(all, f.sharedSocket(u, s)...)
	if what := awkwardName(u, name, file); what != "" {
		all = append(all, f.refuse(what, closeSocket))
	}
	switch {
	case u.State == stateListen:
		all = append(all, f.waitingFindings(u, s)...)
	case u.HasPeer && u.Peer == 0:
		all = append(all, f.unaccepted(s)...)
	case u.HasPeer && s.peer(u) == nil:
		all = append(all, f.foreignPeer(u, s)...)
	case u.HasPeer:
		all = append(all, f.pairFindings(s.peer(u), name, s)...)
	}
	if ready, err := f.polled(0); err == nil && ready&unix.POLLERR != 0 && (u.Type == unix.SOCK_DGRAM || u.Peer != 0) {
		all = append(all, f.refuse("an error waits to be reported by it (SO_ERROR), and only the program may look at that", "let the program use it once, then try again"))
	}
	if _, err := f.filter(); err != nil {
		all = append(all, f.refuse(err.Error(), "detach it (SO_DETACH_FILTER) before the checkpoint"))
	}
	return append(all, f.peerCredFindings(s)...)
}

// sharedSocket tells that somebody outside the tree has the very socket too.
func (f *Found) sharedSocket(u *unixInfo, s *Scene) []image.Finding {
	pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY)
	if pid == 0 || SameProgram(pid) { // another ckptfs that looks at the tree has duplicates for a moment
		return nil
	}
	const remedy = "close it there, or checkpoint a tree that holds that process too"
	if u.State == stateListen {
		return []image.Finding{f.refuse(fmt.Sprintf("%s, which is outside the tree, listens on it too and keeps its name", processName(pid)), remedy)}
	}
	return []image.Finding{f.lose(fmt.Sprintf("%s, which is outside the tree, has this socket too, and will have no part in the restored one", processName(pid)), remedy)}
}

// awkwardName tells why a name cannot be given again, or "".
func awkwardName(u *unixInfo, name []byte, file *unixFile) string {
	if file != nil && len(u.Waiting) > 0 && (file.Gone || len(file.Path) >= unixPathMax) {
		return fmt.Sprintf("connections wait to be accepted by it, and its name %s leads nowhere or is too long", showName(name))
	}
	return ""
}

// waitingFindings refuses connections that wait to be accepted and cannot be made again. What they
// have sent already nobody can look at.
func (f *Found) waitingFindings(u *unixInfo, s *Scene) []image.Finding {
	const remedy = "try again when the program has accepted it"
	var all []image.Finding
	for _, ino := range u.Waiting {
		c := s.socketByNumber(f.Stat.Dev, ino)
		switch {
		case ino == 0:
			all = append(all, f.cutOff(s, "a connection waits to be accepted by it whose other end was closed, and what was sent cannot be looked at", "it is not restored", remedy))
		case c == nil:
			all = append(all, f.cutOff(s, fmt.Sprintf("a connection of %s waits to be accepted by it", s.holderOutside(ino)), "it is not restored", remedy))
		default:
			if why := f.whyNotSent(c, s); why != "" {
				all = append(all, f.refuse(why, remedy))
			}
		}
	}
	return all
}

// cutOff is a refusal, or with the policy unix=disconnect the loss of a connection.
func (f *Found) cutOff(s *Scene, what, lost, remedy string) image.Finding {
	if s.Policy.Get("unix") == "disconnect" {
		return f.lose(what+": "+lost, remedy)
	}
	return f.refuse(what, remedy+", or choose --policy unix=disconnect")
}

// holderOutside names who has a socket that is not in the tree.
func (s *Scene) holderOutside(ino uint32) string {
	if pid := s.Outside(s.sockDev, uint64(ino), unix.O_RDONLY); pid != 0 {
		return processName(pid) + ", which is outside the tree,"
	}
	return "a process that cannot be seen"
}

const readsEnd = "the restored one reads what waits in it and end of file, and writing gives EPIPE"

// unaccepted refuses a connection that waits to be accepted outside the tree.
func (f *Found) unaccepted(s *Scene) []image.Finding {
	at := s.waitsFor(f)
	if at == 0 || s.socketByNumber(f.Stat.Dev, at) != nil {
		return nil
	}
	return []image.Finding{f.cutOff(s, fmt.Sprintf("it waits to be accepted by %s", strings.TrimSuffix(s.holderOutside(at), ",")), readsEnd, closeSocket)}
}

// waitsFor returns the number of the listening socket that has yet to accept f, or 0.
func (s *Scene) waitsFor(f *Found) uint32 {
	if s.waits == nil {
		s.waits = map[uint32]uint32{}
		for ino, u := range s.sockets {
			for _, w := range u.Waiting {
				s.waits[w] = ino
			}
		}
		delete(s.waits, 0)
	}
	return s.waits[uint32(f.Stat.Ino)]
}

// pairFindings refuses a pair that cannot be made again.
func (f *Found) pairFindings(peer *Found, name []byte, s *Scene) []image.Finding {
	v, err := s.socket(peer)
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	other, err := peer.unixName()
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	a, err := f.peerCred()
	b, err2 := peer.peerCred()
	if err != nil || err2 != nil {
		return []image.Finding{f.refuse(errors.Join(err, err2).Error(), closeSocket)}
	}
	mutual := uint64(v.Peer) == f.Stat.Ino
	switch {
	case v.Type == unix.SOCK_DGRAM && len(other) == 0 && !(mutual && a != nil && a.equal(b)):
		return []image.Finding{f.refuse("it sends to a unix socket that has no name and is not connected to it", closeSocket)}
	case v.Type != unix.SOCK_DGRAM && !a.equal(b) && s.acceptedEnd(f, name, peer, other) == nil:
		return []image.Finding{f.refuse("its two ends were connected by different processes, as SO_PEERCRED tells, and it cannot be told which of them listened", closeSocket)}
	}
	return nil
}

// acceptedEnd tells which of two connected ends came from accept(2): it has the name of the one that
// listened. It is nil if none did as far as can be told.
func (s *Scene) acceptedEnd(f *Found, name []byte, peer *Found, other []byte) *Found {
	switch {
	case len(name) > 0 && len(other) == 0:
		return f
	case len(name) == 0 && len(other) > 0:
		return peer
	case len(name) == 0 && len(other) == 0:
		return nil
	}
	for _, u := range s.sockets {
		switch {
		case u.State != stateListen:
		case bytes.Equal(u.Name, name):
			return f
		case bytes.Equal(u.Name, other):
			return peer
		}
	}
	return nil
}

// foreignPeer refuses a connection to somebody outside the tree.
func (f *Found) foreignPeer(u *unixInfo, s *Scene) []image.Finding {
	if s.reconnects(f, u) {
		return nil
	}
	pid := s.Outside(f.Stat.Dev, uint64(u.Peer), unix.O_RDONLY)
	if pid == 0 && !s.Still && s.flying() {
		return nil // it may be under way, which can be seen when the tree stands still
	}
	if pid == 0 {
		return []image.Finding{f.refuse("its other end is in no process that can be seen: it may be under way in a message, or have been closed just now", closeSocket)}
	}
	lost := readsEnd
	if u.Type == unix.SOCK_DGRAM {
		lost = "the restored one reads what waits in it, and writing gives ECONNREFUSED"
	}
	return []image.Finding{f.cutOff(s, fmt.Sprintf("it is connected to %s, which is outside the tree", processName(pid)), lost,
		closeSocket+", or checkpoint a tree that holds that process too")}
}

// reconnects reports whether a restored socket is connected to the same name again, whoever has it
// then: a datagram socket such as syslog(3) has, which the other end knows nothing of.
func (s *Scene) reconnects(f *Found, u *unixInfo) bool {
	if u.Type != unix.SOCK_DGRAM || u.Peer == 0 || s.peer(u) != nil {
		return false
	}
	if v := s.sockets[u.Peer]; v == nil || uint64(v.Peer) == f.Stat.Ino {
		return false
	}
	cred, err := f.peerCred()
	name, nerr := socketAddr(f.FD, unix.SYS_GETPEERNAME)
	if err != nil || nerr != nil || cred != nil || len(name) == 0 {
		return false
	}
	if !isPath(name) {
		return true
	}
	v := s.sockets[u.Peer]
	var st unix.Stat_t
	return name[0] == '/' && unix.Stat(under(s.Root, pathName(name)), &st) == nil && st.Dev == v.FileDev && st.Ino&0xffffffff == v.File
}

// peerCredFindings tells if SO_PEERCRED names a process that cannot be named again. One that has
// ended can, if its id is free then.
func (f *Found) peerCredFindings(s *Scene) []image.Finding {
	c, err := f.peerCred()
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	if c == nil || s.stays(int(c.PID)) {
		return nil
	}
	where := "is not in the tree"
	if s.member(int(c.PID)) {
		where = "is a zombie"
	}
	return []image.Finding{f.lose(fmt.Sprintf("it was connected by %s, which "+where+": SO_PEERCRED will name the first process of the tree in its place", processName(int(c.PID))),
		"checkpoint a tree that holds that process too, if a program asks for it")}
}

// stays reports whether a process can be named by a restored socket: one of the tree that runs, or
// one that is not there any more.
func (s *Scene) stays(pid int) bool {
	stays, known := s.staying[pid]
	if !known {
		if s.staying == nil {
			s.staying = map[int]bool{}
		}
		stays = pid > 0 && s.member(pid) == alive(pid)
		s.staying[pid] = stays
	}
	return stays
}
