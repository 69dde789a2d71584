package ptrace

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"sync"
)

const pageSize = 4096

// vdso is the vdso of a target: its address, and where the bytes begin that no program
// reads (section names and headers, for debuggers, and padding).
type vdso struct {
	start uint64
	bytes []byte // as the kernel made it
	tail  int    // offset of the unused tail
	left  []byte // the tail as it was found
}

// findVDSO finds the vdso of a process and compares it with ours, which the same kernel
// made. mem is its /proc/PID/mem.
func findVDSO(pid int, mem *os.File, maps []vma) (*vdso, error) {
	o, err := ownVDSO()
	if err != nil {
		return nil, err
	}
	own, tail := o.bytes, o.tail
	got, start, err := readVDSO(pid, mem, maps)
	if err != nil {
		return nil, err
	}
	if len(got) != len(own) || !bytes.Equal(got[:tail], own[:tail]) {
		return nil, fmt.Errorf("pid %d: its vdso is not this kernel's: it was restored from another kernel and cannot be checkpointed", pid)
	}
	return &vdso{start: start, bytes: own, tail: tail, left: got[tail:]}, nil
}

// ownVDSO returns the vdso of this process, which is the same as long as the kernel runs,
// and so is read once.
var ownVDSO = sync.OnceValues(readOwnVDSO)

func readOwnVDSO() (*vdso, error) {
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	maps, err := readMaps(os.Getpid())
	if err != nil {
		return nil, err
	}
	b, start, err := readVDSO(os.Getpid(), mem, maps)
	if err != nil {
		return nil, err
	}
	tail, err := vdsoTail(b)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(b[tail:], frameMagic) {
		return nil, fmt.Errorf("the vdso of this process (pid %d) holds a killed checkpoint's leftovers: start it anew", os.Getpid())
	}
	return &vdso{start: start, bytes: b, tail: tail}, nil
}

// readVDSO returns the bytes and the address of a process's vdso.
func readVDSO(pid int, mem *os.File, maps []vma) ([]byte, uint64, error) {
	for _, v := range maps {
		if v.path != "[vdso]" {
			continue
		}
		b := make([]byte, v.end-v.start)
		if _, err := mem.ReadAt(b, int64(v.start)); err != nil {
			return nil, 0, fmt.Errorf("pid %d: read its vdso: %w", pid, err)
		}
		return b, v.start, nil
	}
	return nil, 0, fmt.Errorf("pid %d has no vdso (was it unmapped, or is the kernel booted with vdso=0?): it cannot be checkpointed", pid)
}

// vdsoTail returns where the loaded sections of a vdso end.
func vdsoTail(b []byte) (int, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return 0, fmt.Errorf("the vdso of this kernel: %w", err)
	}
	end := uint64(0)
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 && s.Type != elf.SHT_NOBITS {
			end = max(end, s.Offset+s.Size)
		}
	}
	if end == 0 || end > uint64(len(b)) {
		return 0, fmt.Errorf("the vdso of this kernel: sections end at %#x of %#x bytes: %w", end, len(b), io.ErrUnexpectedEOF)
	}
	return int(end), nil
}

// slotOff is where a slot for a frame begins, from the start of the vdso.
func (v *vdso) slotOff(slot int) int { return align(v.tail) + slot*align(frameLen()) }

// slots is how many frames the tail has room for.
func (v *vdso) slots() int { return max(0, len(v.bytes)-align(v.tail)) / align(frameLen()) }

func align(n int) int { return (n + frameAlign - 1) &^ (frameAlign - 1) }
