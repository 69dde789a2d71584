package task

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// arch_prctl(2) codes of asm/prctl.h.
const (
	archGetCPUID     = 0x1011
	archSetCPUID     = 0x1012
	archGetXcompPerm = 0x1022
	archReqXcompPerm = 0x1023

	cpuidOff = 1 // image.Prctl.CPUID

	ldtSize = 8192 * 8 // LDT_ENTRIES * LDT_ENTRY_SIZE
)

// ReadTraced fills in what ptrace(2) tells of a stopped thread: registers, with the restart of an
// interrupted syscall applied, vector state, signal mask, its own queued signals and rseq. th.TID
// has to be set.
//
// It comes before the first remote system call in the thread. Syscall user dispatch would turn
// that into a SIGSYS, which, being blocked then, would also reset the program's handler; so a
// thread that uses it is refused, as *image.RefusedError.
func ReadTraced(pt *ptrace.Thread, st *ptrace.State, th *image.Thread) error {
	regs := st.ResumeRegs()
	th.Regs, th.XState, th.SigMask = ptrace.RegsBytes(&regs), st.XState, st.SigMask
	th.Rseq = image.Rseq{Ptr: st.Rseq.Ptr, Size: st.Rseq.Size, Sig: st.Rseq.Sig, Flags: st.Rseq.Flags}
	var err error
	if th.Pending, err = pt.PeekSiginfo(false); err != nil {
		return err
	}
	sud, err := pt.SUD()
	if err != nil {
		return err
	}
	if sud != nil {
		pid, err := tgid(pt.TID)
		if err != nil {
			return err
		}
		return refused(pid, pt.TID, "syscall user dispatch", "its system calls are dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH), which no remote call gets past",
			"the program cannot be checkpointed; mostly it is Wine")
	}
	return nil
}

// tgid is the process that a thread belongs to.
func tgid(tid int) (int, error) {
	st, err := readStatus(tid, 0)
	return st.Tgid, err
}

// WriteTraced sets them; it is the last thing before the thread goes on. Own queued signals
// are WriteLast's. Syscall user dispatch, should an image ever hold it, comes now, since it would
// catch remote system calls.
func WriteTraced(pt *ptrace.Thread, th *image.Thread) error {
	regs, err := ptrace.BytesRegs(th.Regs)
	if err != nil {
		return fmt.Errorf("thread %d: %w", th.TID, err)
	}
	if err := pt.SetXState(th.XState); err != nil {
		return err
	}
	if len(th.SUD) != 0 {
		if err := pt.SetSUD(th.SUD); err != nil {
			return err
		}
	}
	return errors.Join(pt.SetRegs(&regs), pt.SetSigMask(th.SigMask))
}

// readCPUID queues whether CPUID faults in this thread.
func readCPUID(q *queue, th *image.Thread) {
	r := q.b.Call(unix.SYS_ARCH_PRCTL, archGetCPUID, 0).Label("read the CPUID mode").Ignore()
	q.then(func() error {
		th.Prctl.CPUID = 0
		if r.Err() == nil && r.Val() == 0 {
			th.Prctl.CPUID = cpuidOff
		}
		return nil
	})
}

func writeCPUID(b *ptrace.Batch, th *image.Thread) {
	if th.Prctl.CPUID == cpuidOff {
		b.Call(unix.SYS_ARCH_PRCTL, archSetCPUID, 0).Label("turn CPUID off (the CPU must be able to)")
	}
}

// readCPUProcess queues reading which vector state the process has asked for, and a look for
// state that is not kept.
func readCPUProcess(q *queue, t *image.Task) {
	buf := q.b.Alloc(16)
	ldt := q.b.Call(unix.SYS_MODIFY_LDT, 0, buf.Addr(), 8).Label("look for a local descriptor table").Ignore()
	perm := q.b.Call(unix.SYS_ARCH_PRCTL, archGetXcompPerm, buf.Addr()+8).Label("read the vector state permissions").Ignore()
	q.then(func() error {
		// Its errors are 32-bit numbers, which look like large positive ones.
		if n := ldt.Val(); n != 0 && n <= ldtSize {
			return q.refused(0, "local descriptor table", "segments of modify_ldt(2) are not kept", "the program cannot be checkpointed; such tables are mostly made by Wine and DOSEMU")
		}
		t.XCompPerm = 0
		if perm.Err() == nil { // it fails on CPUs without such state
			t.XCompPerm = le.Uint64(buf.Bytes()[8:]) & (1 << ptrace.XTileData)
		}
		return nil
	})
}

// WriteCPUProcess queues asking for the vector state that a process had asked for. It comes
// before threads get their registers and alternate stacks.
func WriteCPUProcess(b *ptrace.Batch, t *image.Task) {
	if t.XCompPerm&(1<<ptrace.XTileData) != 0 {
		b.Call(unix.SYS_ARCH_PRCTL, archReqXcompPerm, ptrace.XTileData).Label("ask for AMX tiles (ARCH_REQ_XCOMP_PERM)")
	}
}

// checkCPU lists what of the CPU state cannot be kept.
func checkCPU(pid int, st *procfs.Status, add func(kind, what, remedy string)) error {
	if f := st.X86ThreadFeatures; strings.Contains(f, "shstk") {
		add("shadow stack", fmt.Sprintf("x86 thread features %q are on, which are not kept", strings.TrimSpace(f)),
			"start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off")
	}
	if st.UntagMask != 0 && st.UntagMask != ^uint64(0) {
		add("address tagging", "linear address masking is on, which is not kept", "run the program without tagged addresses")
	}
	auxv, err := quickread.File(taskPath(pid, 0, "auxv")) // opening the executable would be an event for who watches it
	if err != nil {
		return err
	}
	if narrow(auxv) {
		add("32-bit program", "only 64-bit processes can be checkpointed", "use the 64-bit build of the program")
	}
	return nil
}

// narrow reports whether an auxiliary vector is that of a 32-bit program: pairs of 4 bytes each, so
// that no pair of 8 bytes each begins with AT_PAGESZ. One that was emptied (PR_SET_MM_AUXV) is not.
func narrow(auxv []byte) bool {
	const atPageSize = 6
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		switch le.Uint64(auxv) {
		case 0:
			return false
		case atPageSize:
			return false
		case atPageSize | 4096<<32:
			return true
		}
		if le.Uint64(auxv[8:]) == atPageSize|4096<<32 {
			return true
		}
	}
	return false
}
