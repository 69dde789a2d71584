package ptrace

import "encoding/binary"

// cpuid is the CPUID instruction.
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// XComponent is the place of one feature in the XSAVE area in standard format (Intel SDM
// volume 1, chapter 13). CPUs differ: protection keys stand at 2688 on Intel's, at 2432 on
// AMD's.
type XComponent struct {
	Bit       int // in XCR0 and XSTATE_BV
	Off, Size int // bytes
}

// XTileData is the bit of the AMX tiles in XCR0.
const XTileData = 18

// XComponents returns the features that this CPU has beside x87 and SSE, which stand at the
// same place everywhere.
func XComponents() []XComponent {
	const leaf, first, last = 0xd, 2, 62
	if most, _, _, _ := cpuid(0, 0); most < leaf {
		return nil
	}
	var out []XComponent
	for i := first; i <= last; i++ {
		size, off, flags, _ := cpuid(leaf, uint32(i))
		if supervisor := flags&1 != 0; size != 0 && !supervisor {
			out = append(out, XComponent{Bit: i, Off: int(off), Size: int(size)})
		}
	}
	return out
}

// tileCode uses an AMX tile, and then asks for getpid(2). A thread has room for tiles only
// once it has used one (Documentation/arch/x86/xstate.rst).
var tileCode = []byte{
	0xc4, 0xe2, 0x78, 0x49, 0x05, 21, 0, 0, 0, // ldtilecfg tileConfig(%rip)
	0xc4, 0xe2, 0x7b, 0x49, 0xc0, // tilezero %tmm0
	0xc4, 0xe2, 0x78, 0x49, 0xc0, // tilerelease
	0xb8, 39, 0, 0, 0, // mov $39,%eax
	0x0f, 0x05, // syscall
	0x90, 0x90, 0x90, 0x90, // to 30
}

// tileConfig is the configuration of one tile of 16 rows of 64 bytes, 64 bytes long.
func tileConfig() []byte {
	b := make([]byte, 64)
	b[0] = 1                                  // palette
	binary.LittleEndian.PutUint16(b[16:], 64) // bytes a row of tile 0
	b[48] = 16                                // rows of tile 0
	return b
}

// EnableTiles makes the thread of a stub use an AMX tile, for which its process must have
// permission (ARCH_REQ_XCOMP_PERM), so that SetXState takes tiles. at is executable and
// writable memory for 94 bytes.
func (r *Remote) EnableTiles(at uint64) error {
	if err := r.write(r.th.t, append(append([]byte(nil), tileCode...), tileConfig()...), at); err != nil {
		return err
	}
	regs := r.regs
	regs.Rip, regs.Orig_rax = at, ^uint64(0)
	_, _, err := r.th.call(&regs, r.deadline(), "use an AMX tile")
	return err
}
