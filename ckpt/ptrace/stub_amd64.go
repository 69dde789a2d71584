package ptrace

import (
	"fmt"
	"os"
)

// NewStubRemote is NewRemote for a stub that restore has made: pid's thread th is stopped,
// seized with PTRACE_O_EXITKILL, and need not survive us. syscallInsn is the address of a
// syscall instruction, scratch of at least 4096 bytes of readable, writable and executable
// memory, of which batches use scratchLen (0: no batches). th is entered at once, its
// signals are blocked, and there is nothing to leave.
func NewStubRemote(pid int, th *Thread, syscallInsn, scratchAddr uint64, scratchLen int) (*Remote, error) {
	if scratchLen != 0 && scratchLen < pageSize {
		return nil, fmt.Errorf("pid %d: scratch memory of %d bytes, want at least %d", pid, scratchLen, pageSize)
	}
	mem, err := openMem(pid, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	r := &Remote{Timeout: callTimeout, pid: pid, mem: mem, stub: true, insn: syscallInsn}
	if scratchLen != 0 {
		r.scratch = stubScratch(scratchAddr, scratchLen)
	}
	if err := r.Use(th); err != nil {
		mem.Close()
		return nil, err
	}
	return r, nil
}

// Use makes another stopped thread of the stub carry out the calls from now on.
func (r *Remote) Use(th *Thread) error {
	if !r.stub {
		return fmt.Errorf("pid %d: a target's threads are entered, not used", r.pid)
	}
	regs, err := th.Regs()
	if err != nil {
		return err
	}
	if err := th.SetSigMask(allSignals); err != nil {
		return err
	}
	r.th, r.regs = th, regs
	return nil
}

// SetSyscallInsn tells that the syscall instruction is elsewhere from now on.
func (r *Remote) SetSyscallInsn(addr uint64) { r.insn = addr }

// SetScratch tells that the scratch memory is elsewhere from now on; length 0: nowhere.
func (r *Remote) SetScratch(addr uint64, length int) error {
	if !r.stub {
		return fmt.Errorf("pid %d: a target's scratch memory is not the caller's", r.pid)
	}
	if length == 0 {
		r.scratch = scratch{}
		return nil
	}
	if length < pageSize {
		return fmt.Errorf("pid %d: scratch memory of %d bytes, want at least %d", r.pid, length, pageSize)
	}
	r.scratch = stubScratch(addr, length)
	return nil
}
