package restore

import (
	"bytes"
	"fmt"
	"math/bits"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// The XSTATE regset: an XSAVE area in standard format (Intel SDM volume 1, chapter 13) with
// the mask of its features in bytes that are left to software (asm/sigcontext.h, struct
// _fpx_sw_bytes, as ptrace fills it).
const (
	xstateMaskOff = 464
	xstateBVOff   = 512 // XSTATE_BV: the features that are not in their initial state
	xstateHeadEnd = 576

	xLegacy = 3 // x87 and SSE, in the first 512 bytes
	xPKRU   = 9

	// pkruDefault is what the kernel gives every program: all keys but the first denied
	// (init_pkru of arch/x86/mm/pkeys.c).
	pkruDefault = 0x55555554
)

// xNames are the features by their bits in XCR0.
var xNames = map[int]string{2: "AVX", 3: "MPX bounds", 4: "MPX configuration", 5: "AVX-512 masks", 6: "AVX-512 ZMM", 7: "AVX-512 ZMM16-31",
	xPKRU: "protection key rights", 17: "AMX configuration", ptrace.XTileData: "AMX tiles", 19: "APX registers"}

// xstate is the XSTATE regset of a thread with the layout that its CPU gives it.
type xstate struct {
	b      []byte
	layout []image.XComponent
}

// inUse is XSTATE_BV.
func (x xstate) inUse() uint64 {
	if len(x.b) < xstateHeadEnd {
		return 0
	}
	return le.Uint64(x.b[xstateBVOff:])
}

// component returns the bytes of a feature, nil if the layout does not tell where they are.
func (x xstate) component(bit int) []byte {
	for _, c := range x.layout {
		if end := uint64(c.Off) + uint64(c.Size); int(c.Bit) == bit && end <= uint64(len(x.b)) {
			return x.b[c.Off:end]
		}
	}
	return nil
}

// uses reports whether a feature holds something that no fresh thread has. One whose place is
// not known may.
func (x xstate) uses(bit int) bool {
	if x.inUse()>>bit&1 == 0 {
		return false
	}
	c := x.component(bit)
	switch {
	case c == nil:
		return true
	case bit == xPKRU && len(c) >= 4:
		return le.Uint32(c) != pkruDefault
	}
	return !bytes.Equal(c, make([]byte, len(c)))
}

// fit lays a thread's regset out as this machine has it. fresh is the regset of a process that
// has done nothing yet. keys says that the CPU of the image had protection keys. It fails if x
// uses a feature that is not here.
func (x xstate) fit(fresh xstate, keys bool) ([]byte, error) {
	if len(x.b) < xstateHeadEnd || len(fresh.b) < xstateHeadEnd {
		return nil, fmt.Errorf("the XSTATE register set has %d bytes, that of this machine %d", len(x.b), len(fresh.b))
	}
	out := xstate{make([]byte, len(fresh.b)), fresh.layout}
	copy(out.b, x.b[:xstateMaskOff])
	copy(out.b[xstateMaskOff:xstateBVOff], fresh.b[xstateMaskOff:])
	have, bv := le.Uint64(fresh.b[xstateMaskOff:]), x.inUse()&xLegacy
	for left := x.inUse() &^ xLegacy; left != 0; left &= left - 1 {
		bit := bits.TrailingZeros64(left)
		src, dst := x.component(bit), out.component(bit)
		if have>>bit&1 == 1 && src != nil && len(src) == len(dst) {
			copy(dst, src)
			bv |= 1 << bit
		} else if x.uses(bit) {
			return nil, fmt.Errorf("it uses %s, which this CPU or kernel does not have, or at a place that the image does not tell", xName(bit))
		}
	}
	if !keys { // its rights are those that the kernel gives here
		copy(out.component(xPKRU), fresh.component(xPKRU))
		bv |= fresh.inUse() & (1 << xPKRU)
	}
	le.PutUint64(out.b[xstateBVOff:], bv)
	return out.b, nil
}

func xName(bit int) string {
	if s, ok := xNames[bit]; ok {
		return s
	}
	return fmt.Sprintf("XSTATE component %d", bit)
}

// ownLayout is the layout on this machine.
func ownLayout() []image.XComponent {
	var out []image.XComponent
	for _, c := range ptrace.XComponents() {
		out = append(out, image.XComponent{Bit: uint32(c.Bit), Off: uint32(c.Off), Size: uint32(c.Size)})
	}
	return out
}

// imageLayout is the layout of an image. Old ones do not tell it: then it is ours if the rest
// agrees, and AVX is at the same place everywhere.
func imageLayout(h *image.Host, fresh xstate) []image.XComponent {
	switch {
	case len(h.XComponents) > 0:
		return h.XComponents
	case h.XStateLen == uint32(len(fresh.b)) && h.XFeatures == le.Uint64(fresh.b[xstateMaskOff:]):
		return fresh.layout
	}
	return []image.XComponent{{Bit: 2, Off: xstateHeadEnd, Size: 256}}
}

// fitRegisters lays out the registers of every thread as this machine has them; x is the
// XSTATE of a fresh stub.
func (j *job) fitRegisters(x []byte) error {
	fresh := xstate{x, ownLayout()}
	layout := imageLayout(&j.m.Host, fresh)
	keys := j.m.Host.XFeatures>>xPKRU&1 == 1
	j.xstates = map[int32][]byte{}
	for i := range j.m.Tasks {
		for k := range j.m.Tasks[i].Threads {
			th := &j.m.Tasks[i].Threads[k]
			b, err := xstate{th.XState, layout}.fit(fresh, keys)
			if err != nil {
				return &HostError{What: fmt.Sprintf("thread %d (%s): %v", th.TID, th.Comm, err), Remedy: "restore it on a machine with these CPU features"}
			}
			j.xstates[th.TID] = b
		}
	}
	return nil
}

// tiles reports whether a thread has AMX tiles in use.
func tiles(th *image.Thread) bool { return xstate{b: th.XState}.inUse()>>ptrace.XTileData&1 == 1 }
