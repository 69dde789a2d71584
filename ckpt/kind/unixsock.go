package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// unixSock is a socket of the family AF_UNIX. Those of a tree are made as a whole, see unixworld.go:
//
//  1. What SO_PEERCRED tells is noted when two sockets are connected, so a pair is made by the
//     process that it names, which is there by then (Later), under the user it had.
//  2. Names, and what waits in the queues: sent by the other end once more.
//  3. Ends that were closed or shut down, options, owner.
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
}

// unixOpt is an option of SOL_SOCKET.
type unixOpt struct {
	Opt   int32 `cbor:"1,keyasint"`
	Value int32 `cbor:"2,keyasint"`
}

// unixOpts are the options that only unix sockets have, in the order in which they are set.
var unixOpts = [...]int32{unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD, unix.SO_PASSRIGHTS, unix.SO_PEEK_OFF, unix.SO_OOBINLINE, unix.SO_SNDBUF, unix.SO_RCVBUF}

const closeSocket = "close the connection before the checkpoint and open it again afterwards"

func (unixSock) Name() string { return "unix" }

func (unixSock) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK || f.Flags&unix.O_PATH != 0 {
		return false
	}
	family, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && family == unix.AF_UNIX
}

// socket is what the kernel tells of the unix socket f.
func (s *Scene) socket(f *Found) (*unixInfo, error) {
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

// peer finds the other end of f in the tree, or nil.
func (s *Scene) peer(f *Found, u *unixInfo) *Found {
	s.sharing(f)
	for _, g := range s.inodes[[2]uint64{f.Stat.Dev, uint64(u.Peer)}] {
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
	name, err := socketAddr(f.FD, unix.SYS_GETSOCKNAME)
	switch {
	case err != nil:
		all = append(all, f.refuse(err.Error(), closeSocket))
	case u.State == stateListen || len(name) > 0:
		all = append(all, f.refuse("a unix socket with a name is not kept", closeSocket))
	case u.HasPeer && u.Peer != 0 && s.peer(f, u) == nil:
		all = append(all, f.foreignPeer(u, s))
	case u.HasPeer && u.Peer != 0:
		all = append(all, f.pairFindings(s.peer(f, u), s)...)
	}
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY); pid != 0 {
		all = append(all, f.lose(fmt.Sprintf("%s, which is outside the tree, has this end too, and will have no part in the restored one", processName(pid)),
			"close it there, or checkpoint a tree that holds that process too"))
	}
	if ready, err := polled(f.FD, 0); err == nil && ready&unix.POLLERR != 0 && (!u.HasPeer || u.Peer != 0) {
		all = append(all, f.refuse("an error waits to be reported by it (SO_ERROR), and only the program may look at that", "let the program use it once, then try again"))
	}
	return append(all, f.peerCredFindings(s)...)
}

// pairFindings refuses a pair that cannot be made by socketpair(2).
func (f *Found) pairFindings(peer *Found, s *Scene) []image.Finding {
	if v, err := s.socket(peer); err != nil || uint64(v.Peer) != f.Stat.Ino {
		return []image.Finding{f.refuse("it sends to a unix socket that is not connected to it", closeSocket)}
	}
	a, err := peerCred(f.FD)
	b, err2 := peerCred(peer.FD)
	if err != nil || err2 != nil || !a.equal(b) {
		return []image.Finding{f.refuse("its two ends were connected by different processes, and SO_PEERCRED tells which", closeSocket)}
	}
	return nil
}

// foreignPeer refuses a connection to somebody outside the tree.
func (f *Found) foreignPeer(u *unixInfo, s *Scene) image.Finding {
	pid := s.Outside(f.Stat.Dev, uint64(u.Peer), unix.O_RDONLY)
	if pid == 0 {
		return f.refuse("its other end is in no process that can be seen: it may be under way in a message, or have been closed just now", closeSocket)
	}
	return f.refuse(fmt.Sprintf("it is connected to %s, which is outside the tree", processName(pid)), closeSocket+", or checkpoint a tree that holds that process too")
}

// peerCredFindings tells if SO_PEERCRED names a process that cannot be named again.
func (f *Found) peerCredFindings(s *Scene) []image.Finding {
	c, err := peerCred(f.FD)
	if err != nil {
		return []image.Finding{f.refuse(err.Error(), closeSocket)}
	}
	if c == nil || s.member(int(c.PID)) && alive(int(c.PID)) {
		return nil
	}
	return []image.Finding{f.lose(fmt.Sprintf("it was connected by pid %d, which is not in the tree or has ended: SO_PEERCRED will name the first process of the tree in its place", c.PID),
		"none is needed for programs that do not ask for it")}
}

// alive reports whether a process runs, and has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	st, err := procfs.ParseStat(b)
	return err == nil && st.State != 'Z' && st.State != 'X'
}

// socketAddr returns sun_path of getsockname(2) or getpeername(2), as many bytes as it has.
func socketAddr(fd int, nr uintptr) ([]byte, error) {
	buf := make([]byte, 2*unix.SizeofSockaddrUnix)
	n := uint32(len(buf))
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return nil, fmt.Errorf("read its name: %w", errno)
	}
	if n <= 2 || int(n) > len(buf) {
		return nil, nil
	}
	return buf[2:n], nil
}

// peerCred is SO_PEERCRED and SO_PEERGROUPS, nil if there is none.
func peerCred(fd int) (*unixCred, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if c.Pid == 0 && c.Uid == ^uint32(0) {
		return nil, nil
	}
	groups, err := peerGroups(fd)
	return &unixCred{PID: c.Pid, UID: c.Uid, GID: c.Gid, Groups: groups}, err
}

// peerGroups is SO_PEERGROUPS.
func peerGroups(fd int) ([]uint32, error) {
	const most = 65536 // NGROUPS_MAX
	for n := 64; n <= most; n *= 4 {
		buf := make([]byte, 4*n)
		size := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS, uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE:
			continue
		case errno == unix.ENODATA:
			return nil, nil
		case errno != 0:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
		groups := make([]uint32, size/4)
		for i := range groups {
			groups[i] = binary.NativeEndian.Uint32(buf[4*i:])
		}
		return groups, nil
	}
	return nil, fmt.Errorf("SO_PEERGROUPS: %w", unix.ERANGE)
}

func (unixSock) Dump(f *Found, s *Scene, rec *image.File) error {
	u, err := s.socket(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	r := unixRec{Type: int32(u.Type), Ino: f.Stat.Ino, Connected: u.HasPeer, Peer: uint64(u.Peer), Shutdown: u.Shutdown,
		Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid}
	if r.Cred, err = peerCred(f.FD); err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	ready, err := polled(f.FD, 0)
	if err != nil {
		return fmt.Errorf("%s: poll: %w", f.Link, err)
	}
	r.Reset = ready&unix.POLLERR != 0
	for _, opt := range unixOpts {
		v, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, int(opt))
		if err == unix.ENOPROTOOPT || err == unix.EOPNOTSUPP {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: read its option %d: %w", f.Link, opt, err)
		}
		r.Opts = append(r.Opts, unixOpt{opt, int32(v)})
	}
	data, msgs, err := peekQueue(f.FD, u.Type)
	if err != nil {
		return &image.RefusedError{Findings: []image.Finding{f.refuse(err.Error(), "try again when the program has read what waits in it")}}
	}
	defer closeMsgs(msgs)
	for i := range msgs {
		if len(msgs[i].fds) > 0 {
			return &image.RefusedError{Findings: []image.Finding{f.refuse("open files are under way in it (SCM_RIGHTS)", "try again when the program has received them")}}
		}
	}
	if r.Msgs = msgs; len(data) > 0 {
		rec.Blob = s.Blob(data)
	}
	return encodeRec(rec, &r)
}
