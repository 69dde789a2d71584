package kmem

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A second program reads many places at once. What it and we share is the one value of a map:
//
//	0            how many places
//	16 + 16 * i  the address of each, 24 + 16 * i its length, 28 + 16 * i where it goes; the first becomes what
//	             bpf_probe_read_kernel returned
//	bulkData     the bytes
const (
	bulkMost = 32 // places at once; the kernel follows the loop of the program that often when it is loaded, which takes 3 ms
	bulkData = pageLen * 2
	bulkRoom = 128 << 10
	bulkLen  = bulkData + bulkRoom
)

// loadTries is how often a program is loaded: a signal, such as the Go runtime sends to its threads, makes the kernel's
// verifier give up with EAGAIN.
const loadTries = 200

// Place is a piece of memory to be read.
type Place struct {
	Addr  uint64
	Bytes []byte // filled in; 3 KiB at most
	Err   error  // of this place
}

// bulk is the program, loaded when it is first needed.
type bulk struct {
	mu   sync.Mutex
	prog int
	page []byte
	err  error
	done bool
}

// Prepare loads what ReadEach needs, for who has no time later. An error comes again when it is used.
func (m *Memory) Prepare() {
	m.bulk.mu.Lock()
	defer m.bulk.mu.Unlock()
	_ = m.bulk.load()
}

func (b *bulk) load() error {
	if !b.done {
		b.prog, b.page, b.err = loadProgram(bulkLen, bulkProgram)
		b.done = true
	}
	return b.err
}

// ReadEach reads many places, with a system call for some hundred of them. What cannot be read is told in
// Place.Err.
func (m *Memory) ReadEach(all []Place) error {
	m.bulk.mu.Lock()
	defer m.bulk.mu.Unlock()
	if err := m.bulk.load(); err != nil {
		return err
	}
	for len(all) > 0 {
		n, room := 0, 0
		for n < min(len(all), bulkMost) && room+len(all[n].Bytes) <= bulkRoom-maxRead {
			if len(all[n].Bytes) > maxRead {
				return fmt.Errorf("a place of %d bytes, more than %d", len(all[n].Bytes), maxRead)
			}
			room += len(all[n].Bytes)
			n++
		}
		if err := m.bulk.read(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func (b *bulk) read(all []Place) error {
	le := binary.LittleEndian
	le.PutUint64(b.page, uint64(len(all)))
	off := 0
	for i := range all {
		at := b.page[16+16*i:]
		le.PutUint64(at, all[i].Addr)
		le.PutUint32(at[8:], uint32(len(all[i].Bytes)))
		le.PutUint32(at[12:], uint32(off))
		off += len(all[i].Bytes)
	}
	if err := run(b.prog); err != nil {
		return err
	}
	off = 0
	for i := range all {
		p := &all[i]
		if e := int64(le.Uint64(b.page[16+16*i:])); e != 0 {
			p.Err = fmt.Errorf("read %d bytes of kernel memory at %#x: %w", len(p.Bytes), p.Addr, unix.Errno(-e))
		}
		off += copy(p.Bytes, b.page[bulkData+off:])
	}
	return nil
}

// bulkProgram is the program for a map. Its loop ends after bulkMost rounds, which the kernel wants to see.
func bulkProgram(mapFD int) []insn {
	const (
		r0, r1, r2, r3, r4, r6, r7, r8, r9 = 0, 1, 2, 3, 4, 6, 7, 8, 9
		load                               = unix.BPF_LDX | unix.BPF_MEM | 0x18 // u64
		loadWord                           = unix.BPF_LDX | unix.BPF_MEM        // u32
		store                              = unix.BPF_STX | unix.BPF_MEM | 0x18
		loadMap                            = 0x18
		pseudoMapValue                     = 2
	)
	return []insn{
		{loadMap, r6 | pseudoMapValue<<4, 0, int32(mapFD)},
		{0, 0, 0, 0},
		{0xb7, r7, 0, 0},              // r7 = 0
		{load, r8 | r6<<4, 0, 0},      // 3: r8 = how many
		{0x3d, r7 | r8<<4, 16, 0},     // if r7 >= r8 go to the end
		{0x35, r7, 15, bulkMost},      // if r7 >= bulkMost go to the end
		{0xbf, r9 | r7<<4, 0, 0},      // r9 = r7
		{0x67, r9, 0, 4},              // r9 <<= 4
		{0x0f, r9 | r6<<4, 0, 0},      // r9 += r6
		{load, r3 | r9<<4, 16, 0},     // address
		{loadWord, r2 | r9<<4, 24, 0}, // length
		{loadWord, r4 | r9<<4, 28, 0}, // where to
		{0x25, r2, 6, maxRead},        // if r2 > maxRead go to the next
		{0x25, r4, 5, bulkRoom - maxRead},
		{0xbf, r1 | r6<<4, 0, 0}, // r1 = r6 + r4 + bulkData
		{0x0f, r1 | r4<<4, 0, 0},
		{0x07, r1, 0, bulkData},
		{0x85, 0, 0, helperReadKernel},
		{store, r9 | r0<<4, 16, 0},
		{0x07, r7, 0, 1},  // 19: r7 += 1
		{0x05, 0, -18, 0}, // back to 3
		{0xb7, r0, 0, 0},  // 21: return 0
		{0x95, 0, 0, 0},
	}
}

// loadProgram makes a map with one value of so many bytes, loads a program for it and maps the value.
func loadProgram(bytes int, program func(mapFD int) []insn) (prog int, page []byte, err error) {
	array := struct{ typ, key, value, entries, flags uint32 }{typ: bpfMapArray, key: 4, value: uint32(bytes), entries: 1, flags: bpfMmapable}
	mp, err := call(bpfMapCreate, unsafe.Pointer(&array), unsafe.Sizeof(array))
	if err != nil {
		return -1, nil, fmt.Errorf("make a BPF map: %w", err)
	}
	defer unix.Close(mp) // the program holds it
	code, license := program(mp), []byte("Dual MIT/GPL\x00")
	attr := struct {
		typ, n             uint32
		insns, license     uint64
		logLevel, logSize  uint32
		logBuf             uint64
		kernVersion, flags uint32
		_                  [72]byte
	}{typ: bpfProgTypeSyscall, n: uint32(len(code)), insns: address(&code[0]), license: address(&license[0]), flags: bpfSleepable}
	for range loadTries {
		prog, err = call(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if err != unix.EAGAIN {
			break
		}
	}
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return -1, nil, fmt.Errorf("load a BPF program that reads the kernel's memory: %w", err)
	}
	page, err = unix.Mmap(mp, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(prog)
		return -1, nil, fmt.Errorf("map the memory of a BPF program: %w", err)
	}
	return prog, page, nil
}
