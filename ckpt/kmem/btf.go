package kmem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
)

// The format is told by Documentation/bpf/btf.rst. These are BTF_KIND_*.
const (
	kindInt      = 1
	kindPtr      = 2
	kindArray    = 3
	kindStruct   = 4
	kindUnion    = 5
	kindEnum     = 6
	kindTypedef  = 8
	kindVolatile = 9
	kindConst    = 10
	kindRestrict = 11
	kindTypeTag  = 18
	kindEnum64   = 19
	kinds        = 20
)

// extra is how many bytes follow a type of each kind: fixed, and for each of its vlen members.
var extra = [kinds][2]int{kindInt: {4, 0}, kindArray: {12, 0}, kindStruct: {0, 12}, kindUnion: {0, 12}, kindEnum: {0, 8},
	13: {0, 8}, 14: {4, 0}, 15: {0, 12}, 17: {4, 0}, kindEnum64: {0, 12}} // FUNC_PROTO, VAR, DATASEC, DECL_TAG

// field is where a member stands.
type field struct {
	typ  uint32
	bits uint // from the start of the outermost structure
	size uint // bits; 0: a structure or array
}

// used are the structures that anybody asks for; a kernel has ten thousand more.
var used = map[string]bool{"fdtable": true, "file": true, "file_operations": true, "files_struct": true, "inode": true, "io_ev_fd": true, "io_mapped_ubuf": true,
	"io_ring_ctx": true, "io_rings": true, "io_rsrc_node": true, "io_sq_data": true, "io_uring_task": true, "io_wq": true,
	"mqueue_inode_info": true, "msg_msg": true, "msg_msgseg": true, "posix_msg_tree_node": true, "rb_node": true,
	"pid": true, "signal_struct": true, "task_struct": true,
	"bpf_array": true, "kioctx": true, "kioctx_cpu": true, "kioctx_table": true, "mm_struct": true, "mount": true, "packet_fanout": true, "packet_sock": true, "inet_connection_sock": true, "inet_sock": true, "ipv6_pinfo": true, "raw6_sock": true, "raw_sock": true, "sock": true, "socket": true,
	"mptcp_sock": true, "page": true, "request_sock": true, "sk_buff": true, "sk_buff_head": true, "skb_shared_info": true, "socket_alloc": true, "tcp_skb_cb": true, "unix_skb_parms": true,
	"tcp6_sock": true, "tcp_sock": true, "udp6_sock": true, "timer_list": true, "udp_sock": true, "unix_sock": true}

// types finds members of structures.
type types struct {
	typ, str []byte
	marks    []int32           // where every stride-th type stands in typ; type 0 is void
	n        uint32            // types, void among them
	structs  map[string]uint32 // those of used, by name
	mu       sync.Mutex
	found    map[string]field
}

// stride is how far apart marks are: to note where each of 130,000 types stands takes longer than to look.
const stride = 64

func parseBTF(b []byte) (*types, error) {
	bad := func(what string) error { return fmt.Errorf("/sys/kernel/btf/vmlinux: %s", what) }
	if len(b) < 24 || binary.LittleEndian.Uint16(b) != 0xeb9f {
		return nil, bad("no BTF")
	}
	word := func(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }
	head, typeOff, typeLen, strOff, strLen := word(4), word(8), word(12), word(16), word(20)
	if head < 24 || head+typeOff+typeLen > len(b) || head+strOff+strLen > len(b) {
		return nil, bad("its parts do not fit into it")
	}
	t := &types{typ: b[head+typeOff:][:typeLen], str: b[head+strOff:][:strLen], n: 1, marks: make([]int32, 1, typeLen/(20*stride)+2), structs: map[string]uint32{}, found: map[string]field{}}
	for at := 0; at < len(t.typ); t.n++ {
		if at+12 > len(t.typ) {
			return nil, bad("a type is cut")
		}
		k, n := t.kind(at)
		if k <= 0 || k >= kinds {
			return nil, bad(fmt.Sprintf("types of kind %d are not known", k))
		}
		if k == kindStruct {
			if name := t.name(at); used[string(name)] {
				t.structs[string(name)] = t.n
			}
		}
		if t.n%stride == 0 {
			t.marks = append(t.marks, int32(at))
		}
		at = next(at, k, n)
		if at > len(t.typ) {
			return nil, bad("a type is cut")
		}
	}
	return t, nil
}

// next is where the type behind the one at at stands.
func next(at, kind, vlen int) int { return at + 12 + extra[kind][0] + vlen*extra[kind][1] }

// place is where a type stands, -1 for void and what is none.
func (t *types) place(id uint32) int {
	if id == 0 || id >= t.n {
		return -1
	}
	at, from := int(t.marks[id/stride]), id/stride*stride
	if from == 0 {
		from = 1 // void stands nowhere
	}
	for ; from < id; from++ {
		k, n := t.kind(at)
		at = next(at, k, n)
	}
	return at
}

func (t *types) word(at int) uint32 { return binary.LittleEndian.Uint32(t.typ[at:]) }

func (t *types) kind(at int) (kind, vlen int) {
	info := t.word(at + 4)
	return int(info >> 24 & 0x1f), int(info & 0xffff)
}

func (t *types) name(at int) []byte {
	off := int(t.word(at))
	if off >= len(t.str) {
		return nil
	}
	name, _, _ := bytes.Cut(t.str[off:], []byte{0})
	return name
}

// bare follows typedefs and qualifiers to a type, and returns where that stands; -1: nowhere.
func (t *types) bare(id uint32) int {
	for range 32 {
		at := t.place(id)
		if at < 0 {
			return -1
		}
		switch k, _ := t.kind(at); k {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = t.word(at + 8)
		default:
			return at
		}
	}
	return -1
}

// find looks a member up by its path.
func (t *types) find(path string) (field, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.found[path]; ok {
		return f, nil
	}
	names := strings.Split(path, ".")
	f := field{typ: t.structs[names[0]]}
	ok := f.typ != 0
	for _, name := range names[1:] {
		var in field
		if in, ok = t.member(f.typ, name, 0); !ok {
			break
		}
		f = field{in.typ, f.bits + in.bits, in.size}
	}
	if !ok {
		return field{}, fmt.Errorf("this kernel has no %s", path)
	}
	t.found[path] = f
	return f, nil
}

// bytes is how long a structure of used is.
func (t *types) bytes(name string) (uint64, error) {
	at := t.place(t.structs[name])
	if at < 0 {
		return 0, fmt.Errorf("this kernel has no %s", name)
	}
	return uint64(t.word(at + 8)), nil
}

// member finds a member of a structure or of what is in it without a name.
func (t *types) member(id uint32, name string, depth int) (field, bool) {
	at := t.bare(id)
	if at < 0 || depth > 8 {
		return field{}, false
	}
	k, n := t.kind(at)
	if k != kindStruct && k != kindUnion {
		return field{}, false
	}
	bitFields := t.word(at+4)>>31 != 0
	for i := range n {
		m := at + 12 + 12*i
		f := field{typ: t.word(m + 4), bits: uint(t.word(m + 8))}
		if bitFields {
			f.size, f.bits = f.bits>>24, f.bits&0xffffff
		}
		switch got := t.name(m); {
		case string(got) == name:
			if f.size == 0 {
				f.size = t.size(f.typ)
			}
			return f, true
		case len(got) == 0:
			if in, ok := t.member(f.typ, name, depth+1); ok {
				in.bits += f.bits
				return in, true
			}
		}
	}
	return field{}, false
}

// size is how many bits an integer or pointer has; 0 for everything else.
func (t *types) size(id uint32) uint {
	at := t.bare(id)
	if at < 0 {
		return 0
	}
	switch k, _ := t.kind(at); k {
	case kindPtr:
		return 64
	case kindInt, kindEnum, kindEnum64:
		return uint(t.word(at+8)) * 8
	}
	return 0
}
