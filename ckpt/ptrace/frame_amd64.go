package ptrace

import (
	"encoding/binary"
	"fmt"
)

// The signal frame in the vdso tail:
//
//	64-aligned   fpstate: the XSAVE area as rt_sigreturn(2) reads it, then magic2
//	8-aligned    struct ucontext, 304 bytes; in the 64 bytes of its sigcontext that
//	             the kernel reserves and ignores:
//	               +0   frameMagic, which is also the name our helpers take
//	               +16  the address of the scratch mapping, or 0
//	               +24  stubCode
//
// Both magics end in a version of the layout: code of another layout is not ours.
var (
	frameMagic   = []byte("ckptfs-helper\x00\xa7\x01")
	scratchMagic = []byte("ckptfs-scratch\xa7\x01")
	batchMagic   = []byte("ckptfs-batch\x00\x00\xa7\x01")
)

const (
	frameAlign   = 64
	frameNoteLen = 8

	ucSize     = 304
	ucStack    = 16  // stack_t
	ucMContext = 40  // struct sigcontext
	ucReserved = 232 // its reserved words
	ucSigMask  = 296

	noteOff = ucReserved + 16
	codeOff = noteOff + frameNoteLen

	// ucFlags is UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS.
	ucFlags = 7
	// badSSFlags is no valid ss_flags: rt_sigreturn ignores the failure of sigaltstack and
	// so leaves the alternate stack as it is, which we need not know.
	badSSFlags = 0x1234
)

// helperExit is the exit code of a helper process whose tracer died.
const helperExit = 0xc7

// stubCode is what a thread with foreign registers runs. Each entry begins with the
// syscall we want; what follows is for the case that we are gone.
var stubCode = []byte{
	// stubCall: the thread's own calls
	0x0f, 0x05, // syscall
	// stubReturn:
	0x48, 0x8d, 0x25, 0, 0, 0, 0, // lea uc(%rip),%rsp
	0x31, 0xc0, // xor %eax,%eax
	0xb0, 0x0f, // mov $15,%al  (rt_sigreturn)
	0x0f, 0x05, // syscall
	// stubClone: a call that makes a child
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test %eax,%eax
	0x74, 0x04, // jz stubHelper+2, in the child
	0xeb, 0xeb, // jmp stubReturn
	// stubHelper: the calls of a helper process, which must never return into the target
	0x0f, 0x05, // syscall
	0xbf, helperExit, 0, 0, 0, // mov $helperExit,%edi
	0xb8, 0xe7, 0, 0, 0, // mov $231,%eax  (exit_group)
	0x0f, 0x05, // syscall
}

// Offsets of the entries in stubCode.
const (
	stubCall   = 0
	stubReturn = 2
	stubClone  = 15
	stubHelper = 23

	stubLeaEnd = 9 // end of the lea instruction, from which its operand counts
	stubLeaArg = 5
)

// frame is a signal frame ready to be written at addr.
type frame struct {
	addr  uint64
	bytes []byte
	uc    uint64 // address of the struct ucontext in it
}

func (f *frame) note() uint64        { return f.uc + noteOff }
func (f *frame) code(off int) uint64 { return f.uc + codeOff + uint64(off) }
func (f *frame) nameAddr() uint64    { return f.uc + ucReserved }

// buildFrame lays out the frame that brings a thread back to st, at addr, in at most room
// bytes.
func buildFrame(st *State, addr uint64, room int, note uint64) (*frame, error) {
	fp, err := fpFrame(st.XState, room-ucSize)
	if err != nil {
		return nil, fmt.Errorf("%w (registers and code take another %d)", err, ucSize)
	}
	ucOff := (len(fp) + 7) &^ 7
	if ucOff+ucSize > room {
		return nil, fmt.Errorf("the signal frame needs %d bytes, the unused tail of the vdso has %d", ucOff+ucSize, room)
	}
	f := &frame{addr: addr, bytes: make([]byte, ucOff+ucSize), uc: addr + uint64(ucOff)}
	copy(f.bytes, fp)
	putUContext(f.bytes[ucOff:], st, addr)
	code := f.bytes[ucOff+ucReserved:]
	copy(code, frameMagic)
	binary.LittleEndian.PutUint64(code[len(frameMagic):], note)
	copy(code[codeOff-ucReserved:], stubCode)
	rel := int32(-(codeOff + stubLeaEnd)) // uc stands before the code
	binary.LittleEndian.PutUint32(code[codeOff-ucReserved+stubLeaArg:], uint32(rel))
	return f, nil
}

// putUContext writes struct ucontext.
func putUContext(b []byte, st *State, fpstate uint64) {
	le := binary.LittleEndian
	le.PutUint64(b, ucFlags)
	le.PutUint32(b[ucStack+8:], badSSFlags)
	r := st.ResumeRegs()
	for i, v := range []uint64{r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
		r.Rdi, r.Rsi, r.Rbp, r.Rbx, r.Rdx, r.Rax, r.Rcx, r.Rsp, r.Rip, r.Eflags} {
		le.PutUint64(b[ucMContext+8*i:], v)
	}
	seg := b[ucMContext+8*18:]
	le.PutUint16(seg, uint16(r.Cs))
	le.PutUint16(seg[6:], uint16(r.Ss))
	le.PutUint64(b[ucMContext+184:], fpstate)
	le.PutUint64(b[ucSigMask:], st.SigMask)
}
