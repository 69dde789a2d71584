package ptrace

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Regs are a thread's general registers, struct user_regs_struct.
type Regs = unix.PtraceRegs

// regsSize is the size of struct user_regs_struct.
const regsSize = int(unsafe.Sizeof(Regs{}))

// Values that the kernel leaves in rax when a signal or a stop interrupts a system call.
const (
	eINTR                = -4
	eRestartSys          = -512
	eRestartNoIntr       = -513
	eRestartNoHand       = -514
	eRestartRestartBlock = -516
)

// userCS is the code segment of 64-bit tasks.
const userCS = 0x33

// Regs reads the general registers.
func (th *Thread) Regs() (Regs, error) {
	var r Regs
	_, err := th.t.ptracePtr(unix.PTRACE_GETREGS, th.TID, 0, unsafe.Pointer(&r))
	return r, wrap(th.TID, "read its registers", err)
}

// SetRegs writes the general registers.
func (th *Thread) SetRegs(r *Regs) error {
	_, err := th.t.ptracePtr(unix.PTRACE_SETREGS, th.TID, 0, unsafe.Pointer(r))
	return wrap(th.TID, "set its registers", err)
}

// maxXState bounds the register set: AMX needs 11 KiB.
const maxXState = 64 << 10

// XState reads the floating point and vector registers, NT_X86_XSTATE: the XSAVE area in
// standard format, with the feature mask of the kernel at offset 464.
func (th *Thread) XState() ([]byte, error) {
	buf := make([]byte, 4096)
	for {
		iov := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
		_, err := th.t.ptracePtr(unix.PTRACE_GETREGSET, th.TID, unix.NT_X86_XSTATE, unsafe.Pointer(&iov))
		if err != nil {
			return nil, wrap(th.TID, "read its vector registers", err)
		}
		if int(iov.Len) < len(buf) || len(buf) >= maxXState { // a full buffer may have been too small
			return buf[:iov.Len:iov.Len], nil
		}
		buf = make([]byte, 4*len(buf))
	}
}

// SetXState writes what XState returned.
func (th *Thread) SetXState(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("thread %d: set its vector registers: none given", th.TID)
	}
	iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	_, err := th.t.ptracePtr(unix.PTRACE_SETREGSET, th.TID, unix.NT_X86_XSTATE, unsafe.Pointer(&iov))
	return wrap(th.TID, "set its vector registers", err)
}

// fields lists the registers in the order of struct user_regs_struct.
func fields(r *Regs) []*uint64 {
	return []*uint64{&r.R15, &r.R14, &r.R13, &r.R12, &r.Rbp, &r.Rbx, &r.R11, &r.R10, &r.R9, &r.R8,
		&r.Rax, &r.Rcx, &r.Rdx, &r.Rsi, &r.Rdi, &r.Orig_rax, &r.Rip, &r.Cs, &r.Eflags, &r.Rsp, &r.Ss,
		&r.Fs_base, &r.Gs_base, &r.Ds, &r.Es, &r.Fs, &r.Gs}
}

// RegsBytes encodes registers as struct user_regs_struct, little endian.
func RegsBytes(r *Regs) []byte {
	b := make([]byte, 0, regsSize)
	for _, f := range fields(r) {
		b = binary.LittleEndian.AppendUint64(b, *f)
	}
	return b
}

// BytesRegs decodes what RegsBytes made.
func BytesRegs(b []byte) (Regs, error) {
	var r Regs
	if len(b) != regsSize {
		return r, fmt.Errorf("registers of %d bytes, want %d", len(b), regsSize)
	}
	for i, f := range fields(&r) {
		*f = binary.LittleEndian.Uint64(b[8*i:])
	}
	return r, nil
}

// setCall points the registers at a syscall instruction at rip, with its arguments.
func setCall(r *Regs, rip uint64, nr uintptr, args []uint64) {
	r.Rip, r.Rax, r.Orig_rax = rip, uint64(nr), ^uint64(0)
	dst := []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}
	for i, d := range dst {
		*d = 0
		if i < len(args) {
			*d = args[i]
		}
	}
}

// result splits a syscall's rax into value and errno.
func result(rax uint64) (uint64, error) {
	if v := int64(rax); v < 0 && v >= -4095 {
		return 0, unix.Errno(-v)
	}
	return rax, nil
}
