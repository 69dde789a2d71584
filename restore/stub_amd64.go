package restore

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Layout of the hole: the memory that a stub runs in while everything else of its address
// space is taken away and rebuilt.
//
//	code     one page of the ELF file: what the stub runs until it is seized
//	insn     anonymous, executable: the syscall instruction all remote calls go through
//	scratch  anonymous, executable: batches of remote calls
//	data     anonymous: what kind.Process.Put and the restarted syscalls point at
const (
	pageSize   = 4096
	codeLen    = pageSize
	insnLen    = pageSize
	scratchLen = 512 << 10
	dataLen    = 256 << 10
	holeLen    = codeLen + insnLen + scratchLen + dataLen
)

// hole is the address of a stub's memory.
type hole uint64

func (h hole) insn() uint64    { return uint64(h) + codeLen }
func (h hole) scratch() uint64 { return h.insn() + insnLen }
func (h hole) data() uint64    { return h.scratch() + scratchLen }
func (h hole) end() uint64     { return uint64(h) + holeLen }

// syscallInsn is the syscall instruction.
var syscallInsn = []byte{0x0f, 0x05}

// syscallLen is the length of the syscall instruction.
const syscallLen = 2

// stubCode sleeps in pause(2) for ever: mov $34,%eax; syscall; jmp back.
var stubCode = []byte{0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7}

// stubELF is a static executable that occupies exactly the hole.
func stubELF(h hole) []byte {
	const ehdr, phdr = 64, 56
	b := make([]byte, codeLen)

	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)  // EV_CURRENT
	entry := uint64(ehdr + 3*phdr)
	le.PutUint64(b[24:], uint64(h)+entry)
	le.PutUint64(b[32:], ehdr) // e_phoff
	le.PutUint16(b[52:], ehdr)
	le.PutUint16(b[54:], phdr)
	le.PutUint16(b[56:], 3) // e_phnum
	segment := func(i int, typ, flags uint32, addr, filesz, memsz, align uint64) {
		p := b[ehdr+i*phdr:]
		le.PutUint32(p, typ)
		le.PutUint32(p[4:], flags)
		le.PutUint64(p[16:], addr)
		le.PutUint64(p[24:], addr)
		le.PutUint64(p[32:], filesz)
		le.PutUint64(p[40:], memsz)
		le.PutUint64(p[48:], align)
	}
	const ptLoad, ptGNUStack, r, w, x = 1, 0x6474e551, 4, 2, 1
	segment(0, ptLoad, r|x, uint64(h), codeLen, codeLen, pageSize)
	segment(1, ptLoad, r|w|x, h.insn(), 0, holeLen-codeLen, pageSize)
	segment(2, ptGNUStack, r|w, 0, 0, 0, 16)
	copy(b[entry:], stubCode)
	return b
}

// startStub starts a stub with one descriptor, number 0: its end of the channel over which
// files arrive. Its signals and everything else are those of the caller.
func startStub(h hole, channel int) (pid int, err error) {
	fd, err := unix.MemfdCreate("ckptfs-stub", unix.MFD_CLOEXEC|mfdExec)
	if err != nil {
		return 0, &HostError{What: "memfd_create", Err: err, Remedy: "restore needs Linux 6.8 or newer"}
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, stubELF(h), 0); err != nil {
		return 0, fmt.Errorf("write the restore stub: %w", err)
	}
	return forkStub(fmt.Sprintf("/proc/self/fd/%d", fd), channel)
}
