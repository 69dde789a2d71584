package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// netlinkSock is a socket of netlink(7) to a part of the kernel that remembers nothing of it but the
// groups it listens to: routes and interfaces, uevents, sock_diag, generic families, user space.
// What is told to the groups between checkpoint and restore does not reach it.
type netlinkSock struct{}

// netlinkRec is the record of one.
type netlinkRec struct {
	Type     int32     `cbor:"1,keyasint"` // SOCK_RAW or SOCK_DGRAM
	Protocol int32     `cbor:"2,keyasint"` // NETLINK_ROUTE …
	Bound    bool      `cbor:"3,keyasint,omitempty"`
	Port     uint32    `cbor:"4,keyasint,omitempty"` // nl_pid
	Groups   []uint32  `cbor:"5,keyasint,omitempty"` // numbers, from 1 on
	PeerPort uint32    `cbor:"6,keyasint,omitempty"` // of connect(2)
	PeerMask uint32    `cbor:"7,keyasint,omitempty"` // nl_groups of connect(2)
	Opts     []sockOpt `cbor:"8,keyasint,omitempty"`
	Filter   []byte    `cbor:"9,keyasint,omitempty"`
	Mode     uint32    `cbor:"10,keyasint,omitempty"` // of the descriptor's inode
	UID      uint32    `cbor:"11,keyasint,omitempty"`
	GID      uint32    `cbor:"12,keyasint,omitempty"`
}

// netlinkProtocols are those of the parts of the kernel that keep nothing for a socket.
var netlinkProtocols = map[int]bool{unix.NETLINK_ROUTE: true, unix.NETLINK_USERSOCK: true, unix.NETLINK_INET_DIAG: true,
	unix.NETLINK_KOBJECT_UEVENT: true, unix.NETLINK_GENERIC: true, unix.NETLINK_FIB_LOOKUP: true}

const (
	mostNetlinkGroups = 1024

	netlinkListMemberships = 9 // NETLINK_LIST_MEMBERSHIPS of linux/netlink.h
)

func (netlinkSock) Name() string { return "netlink" }

func (netlinkSock) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK || f.Flags&unix.O_PATH != 0 {
		return false
	}
	return f.ofInet().family == unix.AF_NETLINK && netlinkProtocols[f.ofInet().protocol]
}

// ownSocketFindings refuses a socket that is not the tree's alone, or has a filter that nobody can read.
func ownSocketFindings(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY); pid != 0 {
		all = append(all, f.refuse(fmt.Sprintf("%s, which is outside the tree, has this socket too", processName(pid)),
			"close it there, or checkpoint a tree that holds that process too"))
	}
	if _, err := socketFilter(f.FD); err != nil {
		all = append(all, f.refuse(err.Error(), "detach it (SO_DETACH_FILTER)"))
	}
	return all
}

func (netlinkSock) Check(f *Found, s *Scene) []image.Finding {
	all := ownSocketFindings(f, s)
	const again = "let the program read it, then try again"
	if ready, err := polled(f.FD, unix.POLLIN); err != nil || ready&(unix.POLLIN|unix.POLLERR) != 0 {
		all = append(all, f.refuse("messages of the kernel wait in it that the program has not read yet", again))
	}
	if busy, err := netlinkDumps(f.Stat.Ino); err != nil {
		all = append(all, f.refuse(err.Error(), closeSocket))
	} else if busy {
		all = append(all, f.refuse("the kernel is in the middle of a long answer to it", again))
	}
	return all
}

// netlinkDumps tells from /proc/net/netlink whether the kernel is to go on with an answer.
func netlinkDumps(inode uint64) (bool, error) {
	text, err := quickread.File("/proc/thread-self/net/netlink")
	if err != nil {
		return false, err
	}
	return netlinkBusy(string(text), inode), nil
}

// netlinkBusy finds the line of a socket: sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode. One that
// was never used has none.
func netlinkBusy(text string, inode uint64) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 10 && f[9] == strconv.FormatUint(inode, 10) {
			return f[6] != "0"
		}
	}
	return false
}

func (netlinkSock) Dump(f *Found, s *Scene, rec *image.File) error {
	k := f.ofInet()
	r := &netlinkRec{Type: int32(k.typ), Protocol: int32(k.protocol), Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid}
	if err := r.read(f, s); err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	return encodeRec(rec, r)
}

func (r *netlinkRec) read(f *Found, s *Scene) error {
	fresh, err := s.freshOf(f.ofInet())
	if err != nil {
		return err
	}
	if r.Opts, err = dumpOpts(f.FD, int(r.Type), fresh); err != nil {
		return err
	}
	if r.Filter, err = socketFilter(f.FD); err != nil {
		return err
	}
	name, err := sockName(f.FD, unix.SYS_GETSOCKNAME)
	if err != nil {
		return err
	}
	peer, err := sockName(f.FD, unix.SYS_GETPEERNAME)
	if err != nil {
		return err
	}
	if len(name) < unix.SizeofSockaddrNetlink || len(peer) < unix.SizeofSockaddrNetlink {
		return errors.New("its address is too short")
	}
	ne := binary.NativeEndian
	r.Port = ne.Uint32(name[4:])
	r.Bound = r.Port != 0
	r.PeerPort, r.PeerMask = ne.Uint32(peer[4:]), ne.Uint32(peer[8:])
	bits, errno := rawGetOpt(f.FD, unix.SOL_NETLINK, netlinkListMemberships, mostNetlinkGroups/8)
	if errno != 0 {
		return fmt.Errorf("NETLINK_LIST_MEMBERSHIPS: %w", errno)
	}
	for i := range uint32(len(bits) * 8) {
		if bits[i/32*4+i%32/8]>>(i%8)&1 == 1 { // words of 32 bits, little endian as the machine
			r.Groups = append(r.Groups, i+1)
		}
	}
	return nil
}

func (netlinkSock) Open(rec *image.File, e *Env) (int, error) {
	r := &netlinkRec{}
	if err := decodeRec(rec, r); err != nil {
		return -1, err
	}
	if err := r.valid(); err != nil {
		return -1, hostile("the socket %q in the image: %w", rec.Path, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, int(r.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(r.Protocol))
	if err != nil {
		return -1, fmt.Errorf("socket of netlink %d: %w", r.Protocol, err)
	}
	if err := r.set(fd); err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	return finished(fd, rec.Flags, 0, 0)
}

// valid checks a record from an image.
func (r *netlinkRec) valid() error {
	switch {
	case r.Type != unix.SOCK_RAW && r.Type != unix.SOCK_DGRAM || !netlinkProtocols[int(r.Protocol)]:
		return fmt.Errorf("there is no such socket of netlink: type %d, protocol %d", r.Type, r.Protocol)
	case len(r.Groups) > mostNetlinkGroups:
		return fmt.Errorf("it is in %d groups", len(r.Groups))
	case len(r.Filter) > maxFilter*filterSize || len(r.Filter)%filterSize != 0:
		return fmt.Errorf("its filter has %d bytes", len(r.Filter))
	}
	return checkOpts(r.Opts)
}

// set gives a new socket the state of the record.
func (r *netlinkRec) set(fd int) error {
	if err := setOpts(fd, r.Opts, optEarly); err != nil {
		return err
	}
	if r.Bound {
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: r.Port}); err != nil {
			return fmt.Errorf("bind to the netlink port %d, which another socket may have: %w", r.Port, err)
		}
	}
	for _, g := range r.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			return fmt.Errorf("join the netlink group %d: %w", g, err)
		}
	}
	if r.PeerPort != 0 || r.PeerMask != 0 {
		if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: r.PeerPort, Groups: r.PeerMask}); err != nil {
			return fmt.Errorf("connect to the netlink port %d: %w", r.PeerPort, err)
		}
	}
	if err := setOpts(fd, r.Opts, optLate); err != nil {
		return err
	}
	if err := attachFilter(fd, r.Filter); err != nil {
		return err
	}
	if err := setOpts(fd, r.Opts, optLast); err != nil {
		return err
	}
	if err := verifyOpts(fd, r.Opts, false); err != nil {
		return err
	}
	return ownSocket(fd, r.UID, r.GID, r.Mode)
}
