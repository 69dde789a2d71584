package ptrace

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// cpuid is the CPUID instruction.
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// The XSAVE area (Intel SDM volume 1, chapter 13) and what the kernel keeps in the bytes
// that are left to software (struct _fpx_sw_bytes).
const (
	fxsaveLen = 512
	xheadLen  = 64
	xminLen   = fxsaveLen + xheadLen

	swOff        = 464 // struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size
	xstateBVOff  = 512
	xcompBVOff   = 520
	xcompCompact = 1 << 63

	fpMagic1   = 0x46505853
	fpMagic2   = 0x46505845
	fpMagicLen = 4

	x87SSE    = 3 // features in the legacy area, always there
	x87SSEAVX = 7
)

// component is the place of one feature in the XSAVE area.
type component struct {
	off, size int
	aligned   bool // begins 64-aligned in the compacted format
}

func xcomponent(i int) component {
	size, off, flags, _ := cpuid(0xd, uint32(i))
	return component{off: int(off), size: int(size), aligned: flags&2 != 0}
}

// hasXSAVEC reports whether the CPU knows the compacted format.
func hasXSAVEC() bool {
	eax, _, _, _ := cpuid(0xd, 1)
	return eax&2 != 0
}

// fpFrame turns NT_X86_XSTATE into the fpstate of a signal frame of at most room bytes.
// It ends with the last feature that is in use; if that is still too long (protection
// keys stand behind AVX-512), the features in use are moved together, which is the
// processor's compacted format and read by its XRSTOR just as well.
func fpFrame(x []byte, room int) ([]byte, error) {
	if len(x) < xminLen {
		return nil, fmt.Errorf("vector registers of %d bytes, want at least %d: this CPU has no XSAVE", len(x), xminLen)
	}
	n := usedLen(x)
	if n > len(x) {
		return nil, fmt.Errorf("vector registers of %d bytes, their features need %d", len(x), n)
	}
	area := append([]byte(nil), x[:n]...)
	if n+fpMagicLen > room && hasXSAVEC() {
		area = compact(x)
	}
	if len(area)+fpMagicLen > room {
		return nil, fmt.Errorf("the vector registers in use need %d bytes, the unused tail of the vdso has room for %d", len(area)+fpMagicLen, room)
	}
	return sealFP(area, binary.LittleEndian.Uint64(x[swOff:])), nil
}

// sealFP adds the kernel's marks, which make rt_sigreturn restore the extended state.
func sealFP(area []byte, features uint64) []byte {
	le := binary.LittleEndian
	n := uint32(len(area))
	clear(area[swOff:fxsaveLen])
	le.PutUint32(area[swOff:], fpMagic1)
	le.PutUint32(area[swOff+4:], n+fpMagicLen)
	le.PutUint64(area[swOff+8:], features|x87SSEAVX)
	le.PutUint32(area[swOff+16:], n)
	return le.AppendUint32(area, fpMagic2)
}

// extended returns the features of x beyond the legacy area that are in use.
func extended(x []byte) uint64 {
	return binary.LittleEndian.Uint64(x[xstateBVOff:]) &^ (x87SSE | xcompCompact)
}

// usedLen is the length of the area up to the last feature in use.
func usedLen(x []byte) int {
	n := xminLen
	for bv := extended(x); bv != 0; bv &= bv - 1 {
		c := xcomponent(bits.TrailingZeros64(bv))
		n = max(n, c.off+c.size)
	}
	return n
}

// compact moves the features in use together. x is in standard format.
func compact(x []byte) []byte {
	out := append([]byte(nil), x[:xminLen]...)
	for bv := extended(x); bv != 0; bv &= bv - 1 {
		c := xcomponent(bits.TrailingZeros64(bv))
		for c.aligned && len(out)%64 != 0 {
			out = append(out, 0)
		}
		out = append(out, x[c.off:c.off+c.size]...)
	}
	bv := binary.LittleEndian.Uint64(x[xstateBVOff:])
	binary.LittleEndian.PutUint64(out[xcompBVOff:], bv|xcompCompact)
	return out
}
