package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// packetSock is a socket of packet(7), as DHCP clients, lldpd and arping have. Interfaces go by their names: the
// numbers may be others at the restore. Packets that come between checkpoint and restore do not reach it.
type packetSock struct{}

// packetRec is the record of one.
type packetRec struct {
	Type       int32     `cbor:"1,keyasint"`           // SOCK_RAW or SOCK_DGRAM
	Protocol   uint16    `cbor:"2,keyasint,omitempty"` // sll_protocol, in network byte order; 0: it gets nothing
	Interface  string    `cbor:"3,keyasint,omitempty"` // it is bound to; "": all
	Joined     []joined  `cbor:"4,keyasint,omitempty"`
	CopyThresh uint32    `cbor:"5,keyasint,omitempty"`
	Fanout     *uint32   `cbor:"6,keyasint,omitempty"` // as setsockopt(2) takes it; nil: none
	Opts       []sockOpt `cbor:"7,keyasint,omitempty"`
	Filter     []byte    `cbor:"8,keyasint,omitempty"`
	Mode       uint32    `cbor:"9,keyasint,omitempty"` // of the descriptor's inode
	UID        uint32    `cbor:"10,keyasint,omitempty"`
	GID        uint32    `cbor:"11,keyasint,omitempty"`
	FanoutMost uint32    `cbor:"12,keyasint,omitempty"` // sockets that the group may have; 0: as many as by default
}

// joined is what PACKET_ADD_MEMBERSHIP has asked of an interface.
type joined struct {
	Interface string `cbor:"1,keyasint"`
	Type      uint16 `cbor:"2,keyasint"` // PACKET_MR_*
	Addr      []byte `cbor:"3,keyasint,omitempty"`
	Count     uint32 `cbor:"4,keyasint"` // how often
}

const (
	mostJoined      = 1024
	mostJoinedTimes = 1024
	mostHardware    = 8 // bytes of an address in struct packet_mreq

	fanoutCBPF = 6 // PACKET_FANOUT_CBPF of linux/if_packet.h; PACKET_FANOUT_EBPF follows
)

func (packetSock) Name() string { return "packet" }

func (packetSock) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK || f.Flags&unix.O_PATH != 0 {
		return false
	}
	k := f.ofInet()
	return k.family == unix.AF_PACKET && packetType(k.typ)
}

func packetType(typ int) bool { return typ == unix.SOCK_RAW || typ == unix.SOCK_DGRAM }

// packet is what the kernel tells of a packet socket.
func (s *Scene) packet(f *Found) (*packetInfo, error) {
	if s.packets == nil {
		var err error
		if s.packets, err = packetSockets(); err != nil {
			return nil, err
		}
	}
	if p := s.packets[uint32(f.Stat.Ino)]; p != nil {
		if p.Fanout != nil { // sock_diag leaves out the flags
			v, err := unix.GetsockoptInt(f.FD, unix.SOL_PACKET, unix.PACKET_FANOUT)
			if err != nil {
				return nil, fmt.Errorf("PACKET_FANOUT: %w", err)
			}
			*p.Fanout = uint32(v)
		}
		return p, nil
	}
	return nil, errors.New("the kernel does not list it among the packet sockets: it is of another network namespace")
}

func (packetSock) Check(f *Found, s *Scene) []image.Finding {
	all := ownSocketFindings(f, s)
	p, err := s.packet(f)
	if err != nil {
		return append(all, f.refuse(err.Error(), closeSocket))
	}
	if p.Ring {
		all = append(all, f.refuse("it has a ring (PACKET_RX_RING or PACKET_TX_RING), in which the kernel writes at any time", "let the program use recv(2), or end it before the checkpoint"))
	}
	if p.Fanout != nil {
		all = append(all, f.fanoutFindings(s, *p.Fanout)...)
	}
	if _, err := (&packetRec{}).bound(f, p); err != nil {
		all = append(all, f.refuse(err.Error(), closeSocket))
	}
	return append(all, f.datagramFindings(s)...)
}

// fanoutFindings tells what of a fanout group cannot be kept.
func (f *Found) fanoutFindings(s *Scene, fanout uint32) (all []image.Finding) {
	if typ := fanout >> 16 & 0xff; typ == fanoutCBPF || typ == fanoutCBPF+1 {
		all = append(all, f.refuse("a program chooses the socket of its fanout group (PACKET_FANOUT_DATA), which nobody can read", closeSocket))
	}
	if ino := s.fanoutOutside(fanout); ino != 0 {
		all = append(all, f.refuse(fmt.Sprintf("its fanout group %d has a socket outside the tree, too (inode %d, see ss -0e)", fanout&0xffff, ino), "checkpoint a tree that holds that one too"))
	}
	if _, err := fanoutMost(f.FD); err != nil {
		all = append(all, f.lose("how many sockets its fanout group may have (fanout_args) cannot be read, and will be 256: "+err.Error(), "see BPF and BTF in ckptfs check"))
	}
	return all
}

// fanoutMost is how many sockets the fanout group of a socket may have.
func fanoutMost(fd int) (uint32, error) {
	m, err := kmem.Open()
	if err != nil {
		return 0, err
	}
	return m.FanoutMost(fd)
}

// fanoutOutside is the inode number of a socket of a fanout group that nobody in the tree has, or 0.
func (s *Scene) fanoutOutside(fanout uint32) uint32 {
	ours := map[uint32]bool{}
	for _, g := range s.Files {
		ours[uint32(g.Stat.Ino)] = g.Stat.Mode&unix.S_IFMT == unix.S_IFSOCK || ours[uint32(g.Stat.Ino)]
	}
	for ino, p := range s.packets {
		if p.Fanout != nil && *p.Fanout&0xffff == fanout&0xffff && !ours[ino] {
			return ino
		}
	}
	return 0
}

// bound reads what the socket is bound to and has joined.
func (r *packetRec) bound(f *Found, p *packetInfo) (*packetRec, error) {
	sa, err := sockName(f.FD, unix.SYS_GETSOCKNAME)
	if err != nil {
		return nil, err
	}
	if len(sa) < 12 { // struct sockaddr_ll without an address
		return nil, errors.New("its address is too short")
	}
	ne := binary.NativeEndian
	r.Protocol = ne.Uint16(sa[2:])
	if index := int32(ne.Uint32(sa[4:])); index != 0 {
		if r.Interface, err = interfaceName(index); err != nil {
			return nil, err
		}
	}
	for _, m := range p.Members {
		name, err := interfaceName(m.Index)
		if err != nil {
			return nil, err
		}
		if len(m.Addr) > mostHardware {
			return nil, fmt.Errorf("it has joined an address of %d bytes, more than packet_mreq has room for", len(m.Addr))
		}
		r.Joined = append(r.Joined, joined{name, m.Type, m.Addr, m.Count})
	}
	return r, nil
}

func interfaceName(index int32) (string, error) {
	i, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return "", fmt.Errorf("its network interface, number %d, is gone", index)
	}
	return i.Name, nil
}

func (packetSock) Dump(f *Found, s *Scene, rec *image.File) error {
	k := f.ofInet()
	r := &packetRec{Type: int32(k.typ), Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid}
	if err := r.read(f, s); err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	return encodeRec(rec, r)
}

func (r *packetRec) read(f *Found, s *Scene) error {
	p, err := s.packet(f)
	if err != nil {
		return err
	}
	if _, err := r.bound(f, p); err != nil {
		return err
	}
	if r.CopyThresh, r.Fanout = p.CopyThresh, p.Fanout; r.Fanout != nil {
		r.FanoutMost, _ = fanoutMost(f.FD) // that it cannot be read is on the list of losses
	}
	fresh, err := s.freshOf(f.ofInet())
	if err != nil {
		return err
	}
	if r.Opts, err = dumpOpts(f.FD, int(r.Type), fresh); err != nil {
		return err
	}
	r.Filter, err = socketFilter(f.FD)
	return err
}

// CheckOpen looks for the interfaces.
func (packetSock) CheckOpen(rec *image.File, _ *Env) (string, error) {
	r, err := packetRecord(rec)
	if err != nil {
		return "", err
	}
	for _, name := range append([]string{r.Interface}, r.interfaces()...) {
		if _, err := interfaceIndex(name); err != nil {
			return "", fmt.Errorf("packet socket %s: %w", rec.Path, err)
		}
	}
	return "", nil
}

func (r *packetRec) interfaces() (all []string) {
	for i := range r.Joined {
		all = append(all, r.Joined[i].Interface)
	}
	return all
}

func interfaceIndex(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("there is no network interface %q here; make it first (ip link)", name)
	}
	return i.Index, nil
}

func packetRecord(rec *image.File) (*packetRec, error) {
	r := &packetRec{}
	if err := decodeRec(rec, r); err != nil {
		return nil, err
	}
	if err := r.valid(); err != nil {
		return nil, hostile("the socket %q in the image: %w", rec.Path, err)
	}
	return r, nil
}

// valid checks a record from an image.
func (r *packetRec) valid() error {
	switch {
	case !packetType(int(r.Type)):
		return fmt.Errorf("there is no packet socket of type %d", r.Type)
	case len(r.Filter) > maxFilter*filterSize || len(r.Filter)%filterSize != 0:
		return fmt.Errorf("its filter has %d bytes", len(r.Filter))
	case len(r.Joined) > mostJoined:
		return fmt.Errorf("it has joined %d groups", len(r.Joined))
	case len(r.Interface) >= unix.IFNAMSIZ:
		return fmt.Errorf("no network interface has a name of %d bytes", len(r.Interface))
	case r.Fanout != nil && r.Protocol == 0:
		return errors.New("it is in a fanout group and gets no packets")
	}
	for i := range r.Joined {
		j := &r.Joined[i]
		if len(j.Addr) > mostHardware || j.Type > unix.PACKET_MR_UNICAST || j.Count == 0 || j.Count > mostJoinedTimes || j.Interface == "" || len(j.Interface) >= unix.IFNAMSIZ {
			return fmt.Errorf("it cannot have joined %+v", *j)
		}
	}
	return checkOpts(r.Opts)
}

func (packetSock) Open(rec *image.File, _ *Env) (int, error) {
	r, err := packetRecord(rec)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, int(r.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // gets nothing yet
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := r.set(fd); err != nil {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("packet socket %s: %w", rec.Path, err)
	}
	return finished(fd, rec.Flags, 0, 0)
}

// set gives a new socket the state of the record. It is bound when all else is there: then the packets come.
func (r *packetRec) set(fd int) error {
	if err := errors.Join(setOpts(fd, r.Opts, optEarly), setOpts(fd, r.Opts, optLate)); err != nil {
		return err
	}
	if r.CopyThresh != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_COPY_THRESH, int(r.CopyThresh)); err != nil {
			return fmt.Errorf("PACKET_COPY_THRESH: %w", err)
		}
	}
	filter := r.Filter
	if r.Fanout != nil { // until it is in its group it would get what is for the others
		filter = make([]byte, filterSize)
		filter[0] = unix.BPF_RET | unix.BPF_K // of 0 bytes: no packet
	}
	if err := attachFilter(fd, filter); err != nil {
		return err
	}
	for i := range r.Joined {
		if err := r.Joined[i].join(fd); err != nil {
			return err
		}
	}
	if err := r.bind(fd); err != nil {
		return err
	}
	if err := r.fanOut(fd); err != nil {
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

// fanOut joins the fanout group.
func (r *packetRec) fanOut(fd int) error {
	if r.Fanout == nil {
		return nil
	}
	args := binary.LittleEndian.AppendUint32(nil, *r.Fanout) // struct fanout_args of linux/if_packet.h
	if r.FanoutMost != 0 {
		args = binary.LittleEndian.AppendUint32(args, r.FanoutMost)
	}
	if err := rawSetOpt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, args); err != nil {
		return fmt.Errorf("join the fanout group %d, which other sockets may have with other settings: %w", *r.Fanout&0xffff, err)
	}
	if len(r.Filter) == 0 {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	}
	return attachFilter(fd, r.Filter)
}

func (r *packetRec) bind(fd int) error {
	if r.Protocol == 0 && r.Interface == "" {
		return nil
	}
	index, err := interfaceIndex(r.Interface)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: r.Protocol, Ifindex: index}); err != nil {
		return fmt.Errorf("bind to interface %q: %w", r.Interface, err)
	}
	// That it is down is told at once, and was told the program long ago.
	_, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err
}

// join is PACKET_ADD_MEMBERSHIP.
func (j *joined) join(fd int) error {
	index, err := interfaceIndex(j.Interface)
	if err != nil {
		return err
	}
	m := unix.PacketMreq{Ifindex: int32(index), Type: j.Type, Alen: uint16(len(j.Addr))}
	copy(m.Address[:], j.Addr)
	for range j.Count {
		_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, uintptr(unsafe.Pointer(&m)), unsafe.Sizeof(m), 0)
		if errno != 0 {
			return fmt.Errorf("PACKET_ADD_MEMBERSHIP of interface %q, type %d: %w", j.Interface, j.Type, errno)
		}
	}
	return nil
}
