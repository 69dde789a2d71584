// Package kmem reads the kernel's memory.
//
// Some state has no other way out: nobody tells how many requests of an io_uring are under way, or with which flags it
// was made. So a BPF program of twelve instructions (bpf.go) copies bytes from where it is told to, another (bulk.go) those of many places
// at once, and the kernel's own description of its types (/sys/kernel/btf/vmlinux, btf.go) tells where a member of a structure stands. Nothing is
// attached anywhere, nothing is written, and a wrong address is an error.
//
// What is read may change meanwhile and may be freed. A caller has to know why it does not, as of a process that stands
// still, or to look twice.
package kmem

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Memory is the kernel's memory. Its methods may be called by several goroutines.
type Memory struct {
	mu    sync.Mutex
	prog  int
	page  []byte // the value of the program's map, see request
	types *types
	bulk  bulk

	pageSum    sync.Once // see pages
	pageSumIs  pageSum
	pageSumErr error

	cpus struct {
		mu      sync.Mutex
		offsets []uint64 // see cpuOffsets
	}
}

// Open returns the kernel's memory, always the same. It takes CAP_BPF and CAP_PERFMON, and a kernel with BTF.
var Open = sync.OnceValues(open)

func open() (*Memory, error) {
	b, err := readBTF()
	if err != nil {
		return nil, fmt.Errorf("the kernel does not describe its types (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	m := &Memory{}
	if m.types, err = parseBTF(b); err != nil {
		return nil, err
	}
	if m.prog, m.page, err = loadProgram(pageLen, program); err != nil {
		return nil, err
	}
	return m, nil
}

// Task is the address of the struct task_struct of some thread of this process.
func (m *Memory) Task() (uint64, error) { return m.ask(0, nil) }

// Read copies bytes from an address.
func (m *Memory) Read(addr uint64, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), maxRead)
		if _, err := m.ask(addr, b[:n]); err != nil {
			return err
		}
		addr, b = addr+uint64(n), b[n:]
	}
	return nil
}

func (m *Memory) ask(addr uint64, b []byte) (task uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	le := binary.LittleEndian
	le.PutUint64(m.page[8:], addr)
	le.PutUint64(m.page[16:], uint64(len(b)))
	if err := run(m.prog); err != nil {
		return 0, err
	}
	if e := int64(le.Uint64(m.page[24:])); e != 0 && len(b) > 0 {
		return 0, fmt.Errorf("read %d bytes of kernel memory at %#x: %w", len(b), addr, unix.Errno(-e))
	}
	copy(b, m.page[dataOff:])
	return le.Uint64(m.page), nil
}

// Word reads 8 bytes.
func (m *Memory) Word(addr uint64) (uint64, error) {
	var b [8]byte
	err := m.Read(addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// Has reports whether the kernel's structure has a member, "task_struct.files" or "io_ring_ctx.submit_state.free_list".
func (m *Memory) Has(member string) bool {
	_, err := m.types.find(member)
	return err == nil
}

// Offset is where a member stands in its structure.
func (m *Memory) Offset(member string) (uint64, error) {
	f, err := m.types.find(member)
	return uint64(f.bits / 8), err
}

// Get reads a member of the structure at addr: an integer, a bit field or a pointer, of 8 bytes at most.
func (m *Memory) Get(addr uint64, member string) (uint64, error) {
	f, err := m.types.find(member)
	if err != nil {
		return 0, err
	}
	if f.size > 64 || f.size == 0 {
		return 0, fmt.Errorf("%s has %d bits", member, f.size)
	}
	first := f.bits / 8
	b := make([]byte, 8)
	if err := m.Read(addr+uint64(first), b[:(f.bits%8+f.size+7)/8]); err != nil {
		return 0, fmt.Errorf("%s: %w", member, err)
	}
	v := binary.LittleEndian.Uint64(b) >> (f.bits % 8)
	if f.size < 64 {
		v &= 1<<f.size - 1
	}
	return v, nil
}

// readBTF maps the kernel's description of its types, which costs less than to read it and works since
// Linux 6.16, or reads it. It stays for as long as we run.
func readBTF() ([]byte, error) {
	f, err := os.Open("/sys/kernel/btf/vmlinux")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err == nil {
		return b, nil
	}
	b = make([]byte, st.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}
