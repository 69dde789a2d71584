package kmem

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Socket is a socket behind a descriptor of ours.
type Socket struct {
	FD     int
	Struct string // of the kernel that it is: one of those of socketStructs
}

// socketStructs are the structures that a socket can be, and what in them leads to memory elsewhere that options of
// the socket depend on: IP options, multicast groups, filters.
var socketStructs = map[string][]string{
	"tcp_sock": socketV4, "udp_sock": socketV4, "raw_sock": socketV4,
	"tcp6_sock": socketV6, "udp6_sock": socketV6, "raw6_sock": socketV6,
	"unix_sock": {"sock.sk_filter"},
}

var (
	socketV4 = []string{"sock.sk_filter", "inet_sock.inet_opt", "inet_sock.mc_list"}
	socketV6 = slices.Concat(socketV4, []string{"inet6.opt", "inet6.ipv6_mc_list", "inet6.ipv6_ac_list"})
)

// A timer that nobody touches is moved by the others that run out with it.
var socketVolatile = map[string]string{"sock.sk_timer": "timer_list"}

// Sockets returns everything that the kernel has about each socket in the two structures that it is made of, but for a
// timer and the wait queue, with the address of the second: if it is the same at another time, so is
// all that getsockopt(2) tells of the socket, its addresses and its type. It is nil for a socket of which the kernel keeps more in other
// places (IP options, multicast groups, filters).
func (m *Memory) Sockets(all []Socket) ([][]byte, error) {
	files, err := m.files(all)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	private, wait, sk := w.off("file.private_data"), w.off("socket.wq"), w.off("socket.sk")
	if w.err != nil {
		return nil, w.err
	}
	heads := make([]Place, len(all))
	for i := range all {
		heads[i] = Place{Addr: files[i] + private, Bytes: make([]byte, 8)}
	}
	if err := m.ReadEach(heads); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	for i := range heads {
		if heads[i].Err == nil {
			heads[i] = Place{Addr: le.Uint64(heads[i].Bytes), Bytes: make([]byte, wait)}
		}
	}
	if err := m.ReadEach(heads); err != nil {
		return nil, err
	}
	bodies, sizes := make([]Place, len(all)), map[string]uint64{}
	for i := range all {
		size, ok := sizes[all[i].Struct]
		if !ok {
			if size, err = m.types.bytes(all[i].Struct); err != nil {
				return nil, err
			}
			sizes[all[i].Struct] = size
		}
		if heads[i].Err != nil || size > maxRead {
			continue
		}
		bodies[i] = Place{Addr: le.Uint64(heads[i].Bytes[sk:]), Bytes: make([]byte, size)}
	}
	if err := m.ReadEach(bodies); err != nil {
		return nil, err
	}
	out := make([][]byte, len(all))
	parts := map[string]*socketParts{}
	for i := range all {
		if bodies[i].Err != nil || len(bodies[i].Bytes) == 0 {
			continue
		}
		p := parts[all[i].Struct]
		if p == nil {
			if p, err = m.partsOf(all[i].Struct); err != nil {
				return nil, err
			}
			parts[all[i].Struct] = p
		}
		if p.whole(bodies[i].Bytes) {
			out[i] = slices.Concat(heads[i].Bytes, bodies[i].Bytes)
		}
	}
	return out, nil
}

// files are the addresses of the struct files.
func (m *Memory) files(all []Socket) ([]uint64, error) {
	most := -1
	for i := range all {
		most = max(most, all[i].FD)
	}
	task, err := m.Task()
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	table := w.get(w.get(task, "task_struct.files"), "files_struct.fdt")
	if n := w.get(table, "fdtable.max_fds"); w.err == nil && uint64(most) >= n {
		return nil, fmt.Errorf("there is no descriptor %d here", most)
	}
	first := w.get(table, "fdtable.fd")
	b := make([]byte, 8*(most+1))
	if w.err == nil {
		w.err = m.Read(first, b)
	}
	out := make([]uint64, len(all))
	for i := range all {
		out[i] = binary.LittleEndian.Uint64(b[8*all[i].FD:])
	}
	return out, w.err
}

// socketParts are offsets in the structure of a socket.
type socketParts struct {
	pointers []uint64    // to what there is elsewhere
	volatile [][2]uint64 // from and to
}

func (m *Memory) partsOf(name string) (*socketParts, error) {
	p := &socketParts{}
	w := walk{m: m}
	v6 := uint64(0)
	if slices.Contains(socketStructs[name], "inet6.opt") {
		v6 = w.off(name + ".inet6")
	}
	for _, member := range socketStructs[name] {
		if rest, ok := strings.CutPrefix(member, "inet6."); ok {
			p.pointers = append(p.pointers, v6+w.off("ipv6_pinfo."+rest))
		} else {
			p.pointers = append(p.pointers, w.off(member))
		}
	}
	for member, typ := range socketVolatile {
		at := w.off(member)
		n, err := m.types.bytes(typ)
		if w.err == nil {
			w.err = err
		}
		p.volatile = append(p.volatile, [2]uint64{at, at + n})
	}
	return p, w.err
}

// whole reports whether the structure of a socket says that there is no more elsewhere, and drops what changes by itself.
func (p *socketParts) whole(b []byte) bool {
	for _, at := range p.pointers {
		if at+8 > uint64(len(b)) || binary.LittleEndian.Uint64(b[at:]) != 0 {
			return false
		}
	}
	for _, v := range p.volatile {
		if v[1] > uint64(len(b)) {
			return false
		}
		clear(b[v[0]:v[1]])
	}
	return true
}

// FanoutMost is how many sockets the fanout group of a packet socket may have (struct fanout_args of packet(7)).
func (m *Memory) FanoutMost(fd int) (uint32, error) {
	file, err := m.File(fd)
	if err != nil {
		return 0, err
	}
	w := walk{m: m}
	group := w.get(w.get(w.get(file, "file.private_data"), "socket.sk"), "packet_sock.fanout")
	if w.err == nil && group == 0 {
		return 0, fmt.Errorf("descriptor %d of ours is of no fanout group", fd)
	}
	return uint32(w.get(group, "packet_fanout.max_num_members")), w.err
}
