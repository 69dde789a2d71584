package kind

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Multicast groups. No call lists those of a socket, but /proc/net/igmp and igmp6 list those of all,
// and MCAST_MSFILTER, asked for one of them, fails if the socket is not in it.

// group is a membership of a socket in a multicast group.
type group struct {
	Index   uint32   `cbor:"1,keyasint"` // of the network interface
	Addr    []byte   `cbor:"2,keyasint"` // 4 or 16 bytes
	Include bool     `cbor:"3,keyasint,omitempty"`
	Sources [][]byte `cbor:"4,keyasint,omitempty"` // addresses that are let in, or are not
}

// Numbers and layouts of linux/in.h.
const (
	mcastJoinGroup = 42 // MCAST_JOIN_GROUP
	mcastFilter    = 48 // MCAST_MSFILTER
	mcastInclude   = 1
	mcastExclude   = 0

	sockaddrStorage = 128
	filterHead      = 8 + sockaddrStorage + 8 // struct group_filter up to gf_slist
	mostSources     = 1024
)

// groupKey is a group on a network interface.
type groupKey struct {
	index uint32
	addr  netip.Addr
}

// groups returns the groups that a socket is in.
func (s *Scene) groups(f *Found) ([]group, error) {
	if f.known != nil {
		return nil, nil // such a one is in no group
	}
	family := f.ofInet().family
	if s.memberships == nil {
		m, err := memberships()
		if err != nil {
			return nil, err
		}
		s.memberships = m
	}
	var all []group
	for _, k := range s.memberships {
		if k.addr.Is4() != (family == unix.AF_INET) && !(family == unix.AF_INET6 && k.addr.Is4()) {
			continue
		}
		g, err := membership(f.FD, k)
		if err != nil {
			return nil, err
		}
		if g != nil {
			all = append(all, *g)
		}
	}
	return all, nil
}

// membership asks whether a socket is in a group; nil: it is not.
func membership(fd int, k groupKey) (*group, error) {
	g, count, err := askGroup(fd, k, 0)
	if g == nil || err != nil || count == 0 {
		return g, err
	}
	if count > mostSources {
		return nil, fmt.Errorf("its multicast group %s has %d sources, more than %d", k.addr, count, mostSources)
	}
	g, _, err = askGroup(fd, k, count)
	return g, err
}

// askGroup asks for a group and as many sources of it as there is room for; count is how many it has.
func askGroup(fd int, k groupKey, room uint32) (g *group, count uint32, err error) {
	b := make([]byte, filterHead+room*sockaddrStorage)
	ne := binary.NativeEndian
	ne.PutUint32(b, k.index)
	copy(b[8:], groupAddr(k.addr.AsSlice()))
	ne.PutUint32(b[8+sockaddrStorage+4:], room)
	n := uint32(len(b))
	level := uintptr(unix.SOL_IP)
	if !k.addr.Is4() {
		level = unix.SOL_IPV6
	}
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, mcastFilter, uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	switch errno {
	case 0:
	case unix.EADDRNOTAVAIL, unix.ENODEV, unix.EINVAL, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return nil, 0, nil
	default:
		return nil, 0, fmt.Errorf("ask for the multicast group %s: %w", k.addr, errno)
	}
	g = &group{Index: k.index, Addr: k.addr.AsSlice(), Include: ne.Uint32(b[8+sockaddrStorage:]) == mcastInclude}
	count = ne.Uint32(b[8+sockaddrStorage+4:])
	for i := range int(min(count, room)) {
		at := b[filterHead+i*sockaddrStorage:]
		if k.addr.Is4() {
			g.Sources = append(g.Sources, append([]byte{}, at[4:8]...))
		} else {
			g.Sources = append(g.Sources, append([]byte{}, at[8:24]...))
		}
	}
	return g, count, nil
}

// groupAddr is a struct sockaddr_storage of an address.
func groupAddr(addr []byte) []byte {
	b := make([]byte, sockaddrStorage)
	if len(addr) == 4 {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		copy(b[4:], addr)
	} else {
		binary.NativeEndian.PutUint16(b, unix.AF_INET6)
		copy(b[8:], addr)
	}
	return b
}

// valid checks a group from an image.
func (g *group) valid(family int32) error {
	if len(g.Addr) != 4 && (len(g.Addr) != 16 || family != unix.AF_INET6) || len(g.Sources) > mostSources {
		return errors.New("a multicast group of it is none")
	}
	if a, _ := netip.AddrFromSlice(g.Addr); !a.IsMulticast() {
		return fmt.Errorf("%s is no multicast group", a)
	}
	for _, s := range g.Sources {
		if len(s) != len(g.Addr) {
			return errors.New("a source of a multicast group of it is none")
		}
	}
	return nil
}

// join makes a socket a member of the group.
func (g *group) join(fd int) error {
	level := unix.SOL_IP
	if len(g.Addr) == 16 {
		level = unix.SOL_IPV6
	}
	req := make([]byte, 8+sockaddrStorage) // struct group_req
	binary.NativeEndian.PutUint32(req, g.Index)
	copy(req[8:], groupAddr(g.Addr))
	a, _ := netip.AddrFromSlice(g.Addr)
	if err := rawSetOpt(fd, level, mcastJoinGroup, req); err != nil {
		return fmt.Errorf("join the multicast group %s on the network interface %d: %w", a, g.Index, err)
	}
	if !g.Include && len(g.Sources) == 0 {
		return nil
	}
	f := make([]byte, filterHead+len(g.Sources)*sockaddrStorage)
	ne := binary.NativeEndian
	ne.PutUint32(f, g.Index)
	copy(f[8:], groupAddr(g.Addr))
	if g.Include {
		ne.PutUint32(f[8+sockaddrStorage:], mcastInclude)
	}
	ne.PutUint32(f[8+sockaddrStorage+4:], uint32(len(g.Sources)))
	for i, s := range g.Sources {
		copy(f[filterHead+i*sockaddrStorage:], groupAddr(s))
	}
	if err := rawSetOpt(fd, level, mcastFilter, f); err != nil {
		return fmt.Errorf("set the sources of the multicast group %s: %w", a, err)
	}
	return nil
}

// memberships lists every group that any socket of this network namespace is in, or the kernel itself.
func memberships() ([]groupKey, error) {
	v4, err := quickread.File("/proc/thread-self/net/igmp")
	if err != nil {
		return nil, err
	}
	all, err := parseIGMP(string(v4))
	if err != nil {
		return nil, err
	}
	v6, err := quickread.File("/proc/thread-self/net/igmp6")
	if errors.Is(err, unix.ENOENT) {
		return all, nil // no IPv6
	}
	if err != nil {
		return nil, err
	}
	more, err := parseIGMP6(string(v6))
	return append(all, more...), err
}

// parseIGMP reads /proc/net/igmp: a line for each interface, its number first, and below it one
// that begins with white space for each group, in hex as it lies in memory.
func parseIGMP(text string) ([]groupKey, error) {
	all := []groupKey{}
	index := uint64(0)
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) == 0 {
			continue
		}
		if line[0] != '\t' && line[0] != ' ' {
			var err error
			if index, err = strconv.ParseUint(f[0], 10, 32); err != nil {
				return nil, fmt.Errorf("/proc/net/igmp, line %d: no interface: %q", i+1, line)
			}
			continue
		}
		v, err := strconv.ParseUint(f[0], 16, 32)
		if err != nil {
			return nil, fmt.Errorf("/proc/net/igmp, line %d: no group: %q", i+1, line)
		}
		var a [4]byte
		binary.NativeEndian.PutUint32(a[:], uint32(v))
		all = append(all, groupKey{uint32(index), netip.AddrFrom4(a)})
	}
	return all, nil
}

// parseIGMP6 reads /proc/net/igmp6: number and name of the interface, the group in hex.
func parseIGMP6(text string) ([]groupKey, error) {
	var all []groupKey
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("/proc/net/igmp6, line %d: %q", i+1, line)
		}
		index, err := strconv.ParseUint(f[0], 10, 32)
		b, err2 := hex.DecodeString(f[2])
		if err != nil || err2 != nil || len(b) != 16 {
			return nil, fmt.Errorf("/proc/net/igmp6, line %d: %q", i+1, line)
		}
		all = append(all, groupKey{uint32(index), netip.AddrFrom16([16]byte(b))})
	}
	return all, nil
}
