package ptrace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
)

// Signals that were pending when a tracer died are delivered while the thread is on its way
// back, so a handler may return into the frame in the vdso (or, one of SIGURG, into the code
// of a batch) long after. So the frame of a predecessor stays as it is while an address in
// it stands on the stack of a thread, and ours goes into another slot.
//
// An old record that nothing uses any more may look the same; it keeps a frame of 400 bytes in
// place until a later checkpoint, and does no harm. A handler that has switched to another
// stack for good (swapcontext(3)) is not found; it would have to do so in the few instructions
// in which a killed checkpoint is felt at all.

// stackWindow is how much of a thread's stack is searched, from its stack pointer on. The
// kernel's record for a handler is 1 to 12 KiB; what the handler has called stands before it.
const stackWindow = 1 << 20

// A Leftover is a frame of a killed predecessor that stays in the vdso, since a signal handler
// may return into it. A copy of the process needs it at the same place.
type Leftover struct {
	Off   int // from the start of the vdso, bytes
	Bytes []byte
}

// span is a range of addresses.
type span struct{ start, end uint64 }

func (s span) holds(addr uint64) bool { return addr >= s.start && addr < s.end }

// Leftovers returns the frames that stay in the vdso. It is known after the first Enter.
func (r *Remote) Leftovers() []Leftover {
	var out []Leftover
	for _, slot := range r.kept {
		off := r.vdso.slotOff(slot)
		out = append(out, Leftover{Off: off, Bytes: bytes.Clone(r.vdso.left[off-r.vdso.tail:][:frameLen()])})
	}
	return out
}

// chooseSlot finds out what of a predecessor has to stay, and a free slot for our frame. All
// threads are stopped and captured.
func (r *Remote) chooseSlot() error {
	if err := r.findKept(); err != nil {
		return err
	}
	for slot := range r.vdso.slots() {
		if !slices.Contains(r.kept, slot) {
			r.slot, r.chosen = slot, true
			return nil
		}
	}
	if r.vdso.slots() == 0 {
		return fmt.Errorf("pid %d: the way back needs %d bytes, the unused end of this kernel's vdso has %d: the process cannot be checkpointed under this kernel",
			r.pid, align(frameLen()), len(r.vdso.left))
	}
	return fmt.Errorf("pid %d: no room for the way back in the %d bytes at the end of its vdso: signal handlers have to return into %d frames of killed checkpoints; try again when they have ended",
		r.pid, len(r.vdso.left), len(r.kept))
}

// findKept fills in r.kept and r.keptScratch.
func (r *Remote) findKept() error {
	var spans []span
	var slots []int
	for slot := range r.vdso.slots() {
		off := r.vdso.slotOff(slot)
		if bytes.HasPrefix(r.vdso.left[off-r.vdso.tail:], frameMagic) {
			code := r.vdso.start + uint64(off) + frameCodeOff
			spans, slots = append(spans, span{code, code + uint64(len(stubCode))}), append(slots, slot)
		}
	}
	for _, s := range r.leftScratch() {
		spans = append(spans, span{s.end - pageSize, s.end})
	}
	if len(spans) == 0 {
		return nil
	}
	used, err := r.onStacks(spans)
	if err != nil {
		return err
	}
	for i, s := range spans {
		switch {
		case used[i] && i < len(slots):
			r.kept = append(r.kept, slots[i])
		case used[i]:
			r.keptScratch = append(r.keptScratch, s.end-scratchSize)
		}
	}
	return nil
}

// onStacks tells for each span whether a signal handler of a thread returns into it.
func (r *Remote) onStacks(spans []span) ([]bool, error) {
	tids, err := tasks(r.pid)
	if err != nil {
		return nil, fmt.Errorf("pid %d: look for leftovers: %w", r.pid, err)
	}
	used := make([]bool, len(spans))
	for _, tid := range tids {
		sp, b, err := r.stackOf(tid)
		if err != nil {
			return nil, err
		}
		for off := 0; off+8 <= len(b); off += 8 {
			v := binary.LittleEndian.Uint64(b[off:])
			for i, s := range spans {
				used[i] = used[i] || s.holds(v) && isSigRecord(b, off-ucRIP, sp)
			}
		}
	}
	return used, nil
}

// Places in struct ucontext (asm/ucontext.h), which the kernel puts on the stack of a handler.
const (
	ucStackSP   = 16
	ucStackSize = 32
	ucRSP       = 160
	ucRIP       = 168
	ucCS        = 184
	ucEnd       = 192 // of what is looked at

	recordMost = 64 << 10 // the kernel's whole record, with the vector state
)

// isSigRecord reports whether a struct ucontext of a handler stands at off of the stack b,
// which begins at the thread's stack pointer sp: on the alternate stack that it names, if sp
// is there too, or right below the stack pointer that it holds.
func isSigRecord(b []byte, off int, sp uint64) bool {
	if off < 0 || off+ucEnd > len(b) {
		return false
	}
	uc, at := b[off:], sp+uint64(off)
	word := func(off int) uint64 { return binary.LittleEndian.Uint64(uc[off:]) }
	if word(ucCS)&0xffff != userCS {
		return false
	}
	alt := span{word(ucStackSP), word(ucStackSP) + word(ucStackSize)}
	if alt.holds(at) {
		return alt.holds(sp)
	}
	return word(ucRSP)-at < recordMost
}

// stackOf returns the stack of a stopped thread from its stack pointer on, aligned to 8.
func (r *Remote) stackOf(tid int) (sp uint64, b []byte, err error) {
	text, err := quickread.File(fmt.Sprintf("/proc/%d/task/%d/syscall", r.pid, tid))
	if os.IsNotExist(err) {
		return 0, nil, nil // it has ended
	}
	if err != nil {
		return 0, nil, fmt.Errorf("thread %d: read its stack pointer: %w", tid, err)
	}
	f := strings.Fields(string(text)) // …, stack pointer, program counter; "running" if it is not stopped
	if len(f) < 3 {
		return 0, nil, fmt.Errorf("thread %d: read its stack pointer: it is not stopped (%q)", tid, text)
	}
	sp, err = strconv.ParseUint(strings.TrimPrefix(f[len(f)-2], "0x"), 16, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("thread %d: read its stack pointer: %w", tid, err)
	}
	sp &^= 7
	for _, v := range r.maps {
		if sp >= v.start && sp < v.end {
			b = make([]byte, min(v.end-sp, stackWindow))
			n, _ := r.mem.ReadAt(b, int64(sp)) // what cannot be read was not written by the kernel
			return sp, b[:n&^7], nil
		}
	}
	return sp, nil, nil // no stack at all: no handler runs on it
}
