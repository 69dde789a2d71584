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

// Sockets is EachSocket with copies.
func (m *Memory) Sockets(all []Socket) ([][]byte, error) {
	out := make([][]byte, len(all))
	err := m.EachSocket(all, func(i int, memory []byte) { out[i] = slices.Clone(memory) })
	return out, err
}

// socketBatch is how many sockets are read into the same room.
const socketBatch = 256

// EachSocket gives see everything that the kernel has about each socket in the two structures that it is made of, but for a
// timer and the wait queue, with the address of the second: if it is the same at another time, so is
// all that getsockopt(2) tells of the socket, its addresses and its type. It is nil for a socket of which the kernel keeps more in other
// places (IP options, multicast groups, filters), or that cannot be read. The bytes are see's until it returns.
func (m *Memory) EachSocket(all []Socket, see func(i int, memory []byte)) error {
	files, err := m.files(all)
	if err != nil {
		return err
	}
	r := socketReader{m: m, kinds: map[string]*socketParts{}}
	w := walk{m: m}
	r.private, r.wait, r.sk = w.off("file.private_data"), w.off("socket.wq"), w.off("socket.sk")
	if w.err != nil {
		return w.err
	}
	for first := 0; first < len(all); first += socketBatch {
		n := min(socketBatch, len(all)-first)
		err := r.read(all[first:first+n], files[first:first+n], func(i int, memory []byte) { see(first+i, memory) })
		if err != nil {
			return err
		}
	}
	return nil
}

// socketReader reads a batch of sockets after the other.
type socketReader struct {
	m                 *Memory
	private, wait, sk uint64 // offsets
	kinds             map[string]*socketParts
	room              []byte
	places            [socketBatch]Place
}

func (r *socketReader) read(all []Socket, files []uint64, see func(i int, memory []byte)) error {
	most := uint64(0)
	for i := range all {
		p, err := r.parts(all[i].Struct)
		if err != nil {
			return err
		}
		most = max(most, r.wait+p.size)
	}
	if need := most * socketBatch; uint64(len(r.room)) < need {
		r.room = make([]byte, need)
	}
	at := func(i int) []byte { return r.room[uint64(i)*most:] }
	places := r.places[:len(all)]
	for i := range all {
		places[i] = Place{Addr: files[i] + r.private, Bytes: at(i)[:8]}
	}
	if err := r.m.ReadEach(places); err != nil {
		return err
	}
	le := binary.LittleEndian
	for i := range places {
		if places[i].Err == nil {
			places[i] = Place{Addr: le.Uint64(places[i].Bytes), Bytes: at(i)[:r.wait]}
		}
	}
	if err := r.m.ReadEach(places); err != nil {
		return err
	}
	for i := range places {
		if size := r.kinds[all[i].Struct].size; places[i].Err == nil && size <= maxRead {
			places[i] = Place{Addr: le.Uint64(places[i].Bytes[r.sk:]), Bytes: at(i)[r.wait:][:size]}
		} else {
			places[i].Bytes = nil
		}
	}
	if err := r.m.ReadEach(places); err != nil {
		return err
	}
	for i := range places {
		p, memory := r.kinds[all[i].Struct], []byte(nil)
		if places[i].Err == nil && len(places[i].Bytes) > 0 && p.whole(places[i].Bytes) {
			memory = at(i)[:r.wait+p.size]
		}
		see(i, memory)
	}
	return nil
}

// parts finds what is to be known of a structure.
func (r *socketReader) parts(name string) (p *socketParts, err error) {
	if p = r.kinds[name]; p == nil {
		if p, err = r.m.partsOf(name); err == nil {
			r.kinds[name] = p
		}
	}
	return p, err
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
	size     uint64      // bytes
	pointers []uint64    // to what there is elsewhere
	volatile [][2]uint64 // from and to
}

func (m *Memory) partsOf(name string) (*socketParts, error) {
	p := &socketParts{}
	var err error
	if p.size, err = m.types.bytes(name); err != nil {
		return nil, err
	}
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
