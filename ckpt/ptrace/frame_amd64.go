package ptrace

import (
	"encoding/binary"
	"fmt"
)

// The frame in the vdso tail: what brings a thread with foreign registers back to its own,
// should we die.
//
//	64-aligned  frameMagic, which is also the name our helpers take
//	+16         the address of the scratch mapping, or 0
//	+24         frameWords words of 8 bytes: what the code loads
//	            stubCode
//
// A signal frame would do the same by rt_sigreturn(2), and did at first. But it holds the
// vector registers, whose size depends on the CPU and on what the thread used (AMX: 11 KiB),
// and which the kernel reads beyond the end of what is in use: behind the vdso. A system call
// leaves vector registers alone, and so does this code of plain moves, so they need not be in
// any frame. It also leaves alone what rt_sigreturn takes away: the kernel's note of how to go
// on with an interrupted sleep, and the shadow stack.
//
// Its price: pending signals are delivered between its last system call and its last jump, so
// a handler may return into it. Until then it has to stay; see sighandler.go.
//
// The magics end in a version of the layout: code of another layout is not ours.
var (
	frameMagic   = []byte("ckptfs-helper\x00\xa7\x02")
	scratchMagic = []byte("ckptfs-scratch\xa7\x01")
	batchMagic   = []byte("ckptfs-batch\x00\x00\xa7\x02")
)

const (
	frameAlign = 64

	frameNoteOff = 16 // behind frameMagic
	frameNoteLen = 8
	frameDataOff = frameNoteOff + frameNoteLen
	frameCodeOff = frameDataOff + 8*frameWords
)

// The words of a frame.
const (
	wordBlock = iota // a mask that blocks all signals
	wordMask         // the thread's own mask
	wordFlags
	wordRSP
	wordRIP
	wordRegs // rax, rcx, rdx, rbx, rbp, rsi, rdi, r8 … r15: the processor's order without rsp

	frameWords = wordRegs + 15
)

// flagTrap is the trap flag: the processor raises SIGTRAP after each instruction.
const flagTrap = 1 << 8

// helperExit is the exit code of a helper process whose tracer died.
const helperExit = 0xc7

// stubCode is what a thread with foreign registers runs, and where its entries are. Each entry
// begins with the syscall we want; what follows is for the case that we are gone.
var stubCode, stubReturn, stubClone, stubHelper = assembleStub()

// stubCall is the entry for the thread's own calls, stubClone that for calls that make a child,
// stubHelper that for calls of a helper process, which must never return into the target.
// stubReturn is the way back.
const stubCall = 0

// assembleStub makes stubCode. Operands that are relative to the instruction pointer reach the
// words of the frame, so the code is the same wherever the frame is.
func assembleStub() (code []byte, wayBack, clone, helper int) {
	op := func(b ...byte) { code = append(code, b...) }
	word := func(w int, b ...byte) { // an instruction that ends in the displacement of word w
		op(b...)
		next := frameCodeOff + len(code) + 4
		code = binary.LittleEndian.AppendUint32(code, uint32(int32(frameDataOff+8*w-next)))
	}
	setMask := func(w int) { // rt_sigprocmask(SIG_SETMASK, &word, NULL, 8), without a change of flags
		op(0xb8, 14, 0, 0, 0)      // mov $14,%eax
		op(0xbf, 2, 0, 0, 0)       // mov $2,%edi
		word(w, 0x48, 0x8d, 0x35)  // lea word(%rip),%rsi
		op(0xba, 0, 0, 0, 0)       // mov $0,%edx
		op(0x41, 0xba, 8, 0, 0, 0) // mov $8,%r10d
		op(0x0f, 0x05)             // syscall
	}

	op(0x0f, 0x05) // stubCall: syscall

	// The way back. Signals may still be open at its begin, so the stack pointer has to be good
	// until they are blocked; at its end it is the thread's own.
	wayBack = len(code)
	setMask(wordBlock)
	word(wordFlags, 0x48, 0x8d, 0x25) // lea flags(%rip),%rsp
	op(0x9d)                          // popfq
	word(wordRSP, 0x48, 0x8b, 0x25)   // mov rsp(%rip),%rsp
	setMask(wordMask)
	for i := range 15 {
		reg := i
		if reg >= 4 {
			reg++ // rsp is the thread's own already
		}
		rex := byte(0x48 | reg>>3<<2)
		word(wordRegs+i, rex, 0x8b, byte(reg&7<<3|5)) // mov word(%rip),%reg
	}
	word(wordRIP, 0xff, 0x25) // jmp *rip(%rip)

	clone = len(code)
	op(0x0f, 0x05)   // syscall
	op(0x85, 0xc0)   // test %eax,%eax
	op(0x74, 0x05+2) // jz behind the syscall of stubHelper, in the child
	op(0xe9)         // jmp wayBack
	code = binary.LittleEndian.AppendUint32(code, uint32(int32(wayBack-(len(code)+4))))

	helper = len(code)
	op(0x0f, 0x05)                // syscall
	op(0xbf, helperExit, 0, 0, 0) // mov $helperExit,%edi
	op(0xb8, 0xe7, 0, 0, 0)       // mov $231,%eax  (exit_group)
	op(0x0f, 0x05)                // syscall
	return code, wayBack, clone, helper
}

// frameLen is the length of a frame: it does not depend on the thread or the CPU.
func frameLen() int { return frameCodeOff + len(stubCode) }

// frame is a frame ready to be written at addr.
type frame struct {
	addr  uint64
	bytes []byte
}

func (f *frame) note() uint64        { return f.addr + frameNoteOff }
func (f *frame) code(off int) uint64 { return f.addr + frameCodeOff + uint64(off) }
func (f *frame) nameAddr() uint64    { return f.addr }

// buildFrame lays out the frame that brings a thread back to st, at addr.
func buildFrame(st *State, addr uint64, note uint64) (*frame, error) {
	r := st.returnRegs()
	if r.Eflags&flagTrap != 0 {
		return nil, fmt.Errorf("it single-steps itself (the trap flag is set): try again when it does not")
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, frameLen()), frameMagic...)
	b = le.AppendUint64(b, note)
	for _, v := range []uint64{allSignals, st.SigMask, r.Eflags, r.Rsp, r.Rip, r.Rax, r.Rcx, r.Rdx, r.Rbx, r.Rbp, r.Rsi, r.Rdi,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15} {
		b = le.AppendUint64(b, v)
	}
	return &frame{addr: addr, bytes: append(b, stubCode...)}, nil
}
