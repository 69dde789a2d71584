package kmem

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AIO is a context of io_setup(2), struct kioctx of fs/aio.c.
type AIO struct {
	Addr     uint64 // aio_context_t, where its ring is mapped
	MaxReqs  uint32 // what io_setup was asked for
	NREvents uint32 // events that the ring has room for
	InFlight int    // requests that have not ended yet
}

// mostAIO bounds a table of contexts.
const mostAIO = 1 << 16

// AIOs lists the contexts of a process that stands still.
func (m *Memory) AIOs(pid int) ([]AIO, error) {
	leader, err := m.leader(pid)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	table := w.get(w.get(leader, "task_struct.mm"), "mm_struct.ioctx_table")
	if w.err != nil || table == 0 {
		return nil, w.err
	}
	n := w.get(table, "kioctx_table.nr")
	if w.err == nil && n > mostAIO {
		return nil, fmt.Errorf("a table of %d AIO contexts", n)
	}
	first := table + w.off("kioctx_table.table")
	var all []AIO
	for i := range n {
		ctx := w.word(first + 8*i)
		if w.err != nil {
			return nil, w.err
		}
		if ctx == 0 {
			continue
		}
		a, err := m.aio(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, w.err
}

// aio reads one. A request takes a slot, and gives it back some time after its event was read: what was not given back
// is in flight, or counted as completed. Each CPU keeps some of the free slots to itself.
func (m *Memory) aio(ctx uint64) (AIO, error) {
	w := walk{m: m}
	a := AIO{Addr: w.get(ctx, "kioctx.user_id"), MaxReqs: uint32(w.get(ctx, "kioctx.max_reqs")), NREvents: uint32(w.get(ctx, "kioctx.nr_events"))}
	free := int(w.get(ctx, "kioctx.reqs_available.counter"))
	completed := int(w.get(ctx, "kioctx.completed_events"))
	perCPU := w.get(ctx, "kioctx.cpu") + w.off("kioctx_cpu.reqs_available")
	if w.err != nil {
		return a, w.err
	}
	offsets, err := m.cpuOffsets()
	if err != nil {
		return a, err
	}
	for _, off := range offsets {
		var b [4]byte
		if err := m.Read(perCPU+off, b[:]); err != nil {
			return a, err
		}
		free += int(binary.LittleEndian.Uint32(b[:]))
	}
	a.InFlight = int(a.NREvents) - 1 - free - completed
	return a, nil
}

// cpuOffsets are what a pointer to memory of each CPU lacks, of all possible CPUs.
func (m *Memory) cpuOffsets() ([]uint64, error) {
	m.cpus.mu.Lock()
	defer m.cpus.mu.Unlock()
	if m.cpus.offsets == nil {
		offsets, err := m.readCPUOffsets()
		if err != nil {
			return nil, err
		}
		m.cpus.offsets = offsets
	}
	return m.cpus.offsets, nil
}

// readCPUOffsets compares what the kernel has of a map with a value for each CPU with where a program finds those.
func (m *Memory) readCPUOffsets() ([]uint64, error) {
	cpus, err := possibleCPUs()
	if err != nil {
		return nil, err
	}
	const percpuArray = 6
	array := struct{ typ, key, value, entries, flags uint32 }{typ: percpuArray, key: 4, value: 8, entries: 1}
	mp, err := call(bpfMapCreate, unsafe.Pointer(&array), unsafe.Sizeof(array))
	runtime.KeepAlive(&array)
	if err != nil {
		return nil, fmt.Errorf("make a BPF map: %w", err)
	}
	defer unix.Close(mp)
	prog, page, err := loadProgram(pageLen, func(value int) []insn { return cpuProgram(value, mp) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(prog)
	defer unix.Munmap(page)
	file, err := m.File(mp)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	pointer := w.word(w.get(file, "file.private_data") + w.off("bpf_array.pptrs"))
	if w.err != nil {
		return nil, w.err
	}
	var out []uint64
	for cpu := range cpus {
		binary.LittleEndian.PutUint64(page, uint64(cpu))
		if err := run(prog); err != nil {
			return nil, err
		}
		if at := binary.LittleEndian.Uint64(page[8:]); at != 0 { // a number that no CPU can have, among those that can be
			out = append(out, at-pointer)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no CPU has memory of its own")
	}
	return out, nil
}

// cpuProgram finds the value of a map for a CPU: its number is word 0 of the shared page, the address becomes word 1.
func cpuProgram(value, perCPU int) []insn {
	const (
		r0, r1, r2, r3, r6, r10 = 0, 1, 2, 3, 6, 10
		load                    = unix.BPF_LDX | unix.BPF_MEM | 0x18
		store                   = unix.BPF_STX | unix.BPF_MEM | 0x18
		storeWord               = unix.BPF_ST | unix.BPF_MEM // u32
		loadMap                 = 0x18
		pseudoMap               = 1
		pseudoMapValue          = 2
		lookupPerCPU            = 195 // bpf_map_lookup_percpu_elem, Linux 5.19
	)
	return []insn{
		{loadMap, r6 | pseudoMapValue<<4, 0, int32(value)},
		{0, 0, 0, 0},
		{storeWord, r10, -4, 0},
		{loadMap, r1 | pseudoMap<<4, 0, int32(perCPU)},
		{0, 0, 0, 0},
		{0xbf, r2 | r10<<4, 0, 0}, // r2 = r10
		{0x07, r2, 0, -4},         // r2 -= 4: the key
		{load, r3 | r6<<4, 0, 0},
		{0x85, 0, 0, lookupPerCPU},
		{store, r6 | r0<<4, 8, 0},
		{0xb7, r0, 0, 0},
		{0x95, 0, 0, 0},
	}
}

// possibleCPUs is one more than the highest number that a CPU can have.
func possibleCPUs() (int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	s = s[strings.LastIndexAny(s, "-,")+1:]
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("possible CPUs %q: %w", b, err)
	}
	return n + 1, nil
}
