package kmem

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What bpf(2) calls these, see linux/bpf.h.
const (
	bpfMapCreate       = 0
	bpfProgLoad        = 5
	bpfProgTestRun     = 10
	bpfProgTypeSyscall = 31
	bpfSleepable       = 1 << 4
	bpfMapArray        = 2
	bpfMmapable        = 1 << 10
	helperCurrentTask  = 35  // bpf_get_current_task
	helperReadKernel   = 113 // bpf_probe_read_kernel
)

// What the program and we share is the one value of a map, mapped here:
//
//	0   the struct task_struct of the thread that asks, which the program fills in
//	8   an address, and 16 how many bytes to read there
//	24  what bpf_probe_read_kernel returned
//	32  the bytes
const (
	dataOff = 32
	maxRead = 3 << 10
	pageLen = 4096
)

// insn is struct bpf_insn.
type insn struct {
	code uint8
	regs uint8 // destination, and source in the upper half
	off  int16
	imm  int32
}

// program is the program for a map. bpf_probe_read_kernel fails for what is not mapped, so a wrong address does no harm.
func program(mapFD int) []insn {
	const (
		r0, r1, r2, r3, r6 = 0, 1, 2, 3, 6
		load               = unix.BPF_LDX | unix.BPF_MEM | 0x18 // u64
		store              = unix.BPF_STX | unix.BPF_MEM | 0x18
		loadMap            = 0x18 // r6 = address of the value, in two instructions
		pseudoMapValue     = 2
	)
	return []insn{
		{loadMap, r6 | pseudoMapValue<<4, 0, int32(mapFD)},
		{0, 0, 0, 0},
		{0x85, 0, 0, helperCurrentTask},
		{store, r6 | r0<<4, 0, 0},
		{load, r3 | r6<<4, 8, 0},
		{load, r2 | r6<<4, 16, 0},
		{0x25, r2, 4, maxRead},   // if r2 > maxRead skip the next four
		{0xbf, r1 | r6<<4, 0, 0}, // r1 = r6
		{0x07, r1, 0, dataOff},   // r1 += dataOff
		{0x85, 0, 0, helperReadKernel},
		{store, r6 | r0<<4, 24, 0},
		{0xb7, r0, 0, 0}, // return 0
		{0x95, 0, 0, 0},
	}
}

// run runs the program.
func run(prog int) error {
	attr := struct {
		fd uint32
		_  [76]byte
	}{fd: uint32(prog)}
	if _, err := call(bpfProgTestRun, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("run the BPF program that reads the kernel's memory: %w", err)
	}
	return nil
}

func call(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil // descriptors of bpf(2) have close-on-exec
}

func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }
