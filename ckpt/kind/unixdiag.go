package kind

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// unixInfo is what unix_diag of sock_diag(7) tells of one unix socket.
type unixInfo struct {
	Type, State uint8
	HasPeer     bool     // it is or was connected
	Peer        uint32   // inode number of the other end; 0: that was closed
	Shutdown    uint8    // 1: reads end of file, 2: cannot write
	Backlog     uint32   // of a listening one, of listen(2)
	Waiting     []uint32 // inode numbers of those that connected to it and were not accepted yet; 0: closed since
	Name        []byte
	File        uint64 // inode number of the file of its name, the lower 32 bits
	FileDev     uint64
}

const (
	stateListen = 10 // TCP_LISTEN of linux/tcp_states.h

	unixDiagShow = 0x1f // UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS and _RQLEN of linux/unix_diag.h
)

// Attributes of linux/unix_diag.h.
const (
	unixDiagName     = 0
	unixDiagVFS      = 1
	unixDiagPeer     = 2
	unixDiagIcons    = 3
	unixDiagRQLen    = 4
	unixDiagShutdown = 6
)

// unixSockets asks the kernel for every unix socket of our network namespace, by inode number.
func unixSockets() (map[uint32]*unixInfo, error) {
	body := make([]byte, 24) // struct unix_diag_req
	body[0] = unix.AF_UNIX
	ne := binary.NativeEndian
	ne.PutUint32(body[4:], ^uint32(0)) // udiag_states
	ne.PutUint32(body[12:], unixDiagShow)
	all := map[uint32]*unixInfo{}
	err := listSockets(body, func(b []byte) (bool, error) { return parseUnixDiag(b, all) })
	return all, err
}

// parseUnixDiag reads one datagram of the answer; done: it was the last.
func parseUnixDiag(b []byte, all map[uint32]*unixInfo) (done bool, err error) {
	return parseDiag(b, "unix sockets (CONFIG_UNIX_DIAG)", func(body []byte) {
		u := &unixInfo{Type: body[1], State: body[2]}
		u.attributes(body[16:])
		all[binary.NativeEndian.Uint32(body[4:])] = u
	})
}

// attributes reads what follows a socket.
func (u *unixInfo) attributes(b []byte) {
	ne := binary.NativeEndian
	eachAttribute(b, func(typ uint16, v []byte) {
		switch {
		case typ == unixDiagName:
			u.Name = bytes.Clone(v)
		case typ == unixDiagVFS && len(v) >= 8: // the device as the kernel has it: 12 and 20 bits
			dev := ne.Uint32(v[4:])
			u.File, u.FileDev = uint64(ne.Uint32(v)), unix.Mkdev(dev>>20, dev&0xfffff)
		case typ == unixDiagPeer && len(v) >= 4:
			u.HasPeer, u.Peer = true, ne.Uint32(v)
		case typ == unixDiagShutdown && len(v) >= 1:
			u.Shutdown = v[0]
		case typ == unixDiagRQLen && len(v) >= 8:
			u.Backlog = ne.Uint32(v[4:])
		case typ == unixDiagIcons:
			for ; len(v) >= 4; v = v[4:] {
				u.Waiting = append(u.Waiting, ne.Uint32(v))
			}
		}
	})
}
