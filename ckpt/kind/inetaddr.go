package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockName returns the struct sockaddr that getsockname(2) or getpeername(2) gives.
func sockName(fd int, nr uintptr) ([]byte, error) {
	buf := make([]byte, unix.SizeofSockaddrAny)
	n := uint32(len(buf))
	if _, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n))); errno != 0 {
		return nil, fmt.Errorf("read its address: %w", errno)
	}
	return buf[:min(int(n), len(buf))], nil
}

// addrPort takes a struct sockaddr_in or sockaddr_in6 apart.
func addrPort(sa []byte) netip.AddrPort {
	if len(sa) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(sa[2:])
	if binary.NativeEndian.Uint16(sa) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port)
	}
	if len(sa) < unix.SizeofSockaddrInet6 {
		return netip.AddrPort{}
	}
	a := netip.AddrFrom16([16]byte(sa[8:24]))
	if scope := binary.NativeEndian.Uint32(sa[24:]); scope != 0 {
		a = a.WithZone(strconv.Itoa(int(scope)))
	}
	return netip.AddrPortFrom(a, port)
}

func addrText(sa []byte) string { return addrPort(sa).String() }

// anyPort is the same address with port 0.
func anyPort(sa []byte) []byte {
	out := append([]byte{}, sa...)
	if len(out) >= 4 {
		out[2], out[3] = 0, 0
	}
	return out
}

// loopback is the address of this host, port 0.
func loopback(family int32) []byte {
	if family == unix.AF_INET {
		sa := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(sa, unix.AF_INET)
		copy(sa[4:], []byte{127, 0, 0, 1})
		return sa
	}
	sa := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(sa, unix.AF_INET6)
	sa[23] = 1
	return sa
}

// bound reports whether the socket has an address. A raw socket's "port" is its protocol.
func (r *inetRec) bound() bool {
	a := addrPort(r.Name)
	if r.Type == unix.SOCK_RAW {
		return a.Addr().IsValid() && !a.Addr().IsUnspecified()
	}
	return a.Port() != 0 || a.Addr().IsValid() && !a.Addr().IsUnspecified()
}

// validAddr checks an address from an image.
func (r *inetRec) validAddr(sa []byte) error {
	size := unix.SizeofSockaddrInet4
	if r.Family == unix.AF_INET6 {
		size = unix.SizeofSockaddrInet6
	}
	if len(sa) != 0 && (len(sa) != size || int32(binary.NativeEndian.Uint16(sa)) != r.Family) {
		return fmt.Errorf("an address of it has %d bytes or is of another family", len(sa))
	}
	return nil
}

// addressTaken says that an address cannot be had.
type addressTaken struct {
	addr string
	pid  int // who has it; 0: nobody that can be seen
	err  error
}

func (e *addressTaken) Error() string {
	switch {
	case errors.Is(e.err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("bind to %s: this machine does not have that address; add it (ip addr add) and restore again", e.addr)
	case errors.Is(e.err, unix.EADDRINUSE) && e.pid != 0:
		return fmt.Sprintf("bind to %s: the port is in use by %s; end that and restore again", e.addr, processName(e.pid))
	case errors.Is(e.err, unix.EADDRINUSE):
		return fmt.Sprintf("bind to %s: the port is in use by a socket that no visible process has; wait until it is free and restore again", e.addr)
	}
	return fmt.Sprintf("bind to %s: %v", e.addr, e.err)
}

func (e *addressTaken) Unwrap() error { return e.err }

// taken names who is in the way of bind(2).
func (r *inetRec) taken(err error) error {
	if len(r.Name) == 0 {
		return err
	}
	e := &addressTaken{addr: addrText(r.Name), err: err}
	if errors.Is(err, unix.EADDRINUSE) {
		e.pid = portHolder(r.Protocol, addrPort(r.Name).Port())
	}
	return e
}

// ownSocket gives the inode of a socket its owner and mode.
func ownSocket(fd int, uid, gid, mode uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Uid != uid || st.Gid != gid {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return fmt.Errorf("fchown to %d:%d: %w", uid, gid, err)
		}
	}
	if st.Mode&0o7777 != mode&0o7777 {
		if err := unix.Fchmod(fd, mode&0o7777); err != nil {
			return fmt.Errorf("fchmod: %w", err)
		}
	}
	return nil
}

// reuses is the value of SO_REUSEADDR.
func (r *inetRec) reuses() int {
	for _, o := range r.Opts {
		if o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEADDR {
			return 1
		}
	}
	return 0
}
