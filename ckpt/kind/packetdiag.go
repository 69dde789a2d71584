package kind

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// packetInfo is what packet_diag of sock_diag(7) tells of one socket of packet(7).
type packetInfo struct {
	CopyThresh uint32
	Members    []packetMember
	Ring       bool    // it has one, for receiving or sending
	Fanout     *uint32 // group in the lower half, type in the next byte; nil: it is in none
}

// packetMember is struct packet_diag_mclist.
type packetMember struct {
	Index int32
	Count uint32
	Type  uint16 // PACKET_MR_*
	Addr  []byte
}

// linux/packet_diag.h
const (
	packetDiagShow = 0x0f // PACKET_SHOW_INFO, _MCLIST, _RING_CFG and _FANOUT

	packetDiagInfo   = 0
	packetDiagMCList = 1
	packetDiagRXRing = 2
	packetDiagTXRing = 3
	packetDiagFanout = 4

	packetMemberLen = 44
)

// packetSockets asks the kernel for every socket of packet(7) of our network namespace, by inode number.
func packetSockets() (map[uint32]*packetInfo, error) {
	body := make([]byte, 20) // struct packet_diag_req
	body[0] = unix.AF_PACKET
	binary.NativeEndian.PutUint32(body[8:], packetDiagShow)
	all := map[uint32]*packetInfo{}
	err := listSockets(body, func(b []byte) (bool, error) { return parsePacketDiag(b, all) })
	return all, err
}

// parsePacketDiag reads one datagram of the answer; done: it was the last.
func parsePacketDiag(b []byte, all map[uint32]*packetInfo) (done bool, err error) {
	return parseDiag(b, "packet sockets (CONFIG_PACKET_DIAG)", func(body []byte) {
		p := &packetInfo{}
		p.attributes(body[16:])
		all[binary.NativeEndian.Uint32(body[4:])] = p
	})
}

// attributes reads what follows a socket.
func (p *packetInfo) attributes(b []byte) {
	ne := binary.NativeEndian
	eachAttribute(b, func(typ uint16, v []byte) {
		switch { // without NLA_F_NESTED
		case typ == packetDiagInfo && len(v) >= 16:
			p.CopyThresh = ne.Uint32(v[12:])
		case typ == packetDiagMCList:
			for ; len(v) >= packetMemberLen; v = v[packetMemberLen:] {
				m := packetMember{Index: int32(ne.Uint32(v)), Count: ne.Uint32(v[4:]), Type: ne.Uint16(v[8:])}
				m.Addr = append(m.Addr, v[12:12+min(int(ne.Uint16(v[10:])), 32)]...)
				p.Members = append(p.Members, m)
			}
		case typ == packetDiagRXRing || typ == packetDiagTXRing:
			p.Ring = true
		case typ == packetDiagFanout && len(v) >= 4:
			fanout := ne.Uint32(v)
			p.Fanout = &fanout
		}
	})
}
