package restore

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// Layouts of real CPUs.
var (
	avxOnly = []image.XComponent{{Bit: 2, Off: 576, Size: 256}}
	// Sapphire Rapids: MPX's places stay free.
	intel = []image.XComponent{{Bit: 2, Off: 576, Size: 256}, {Bit: 5, Off: 1088, Size: 64}, {Bit: 6, Off: 1152, Size: 512},
		{Bit: 7, Off: 1664, Size: 1024}, {Bit: xPKRU, Off: 2688, Size: 8}, {Bit: 17, Off: 2752, Size: 64}, {Bit: 18, Off: 2816, Size: 8192}}
	// Zen 4.
	amd = []image.XComponent{{Bit: 2, Off: 576, Size: 256}, {Bit: 5, Off: 832, Size: 64}, {Bit: 6, Off: 896, Size: 512},
		{Bit: 7, Off: 1408, Size: 1024}, {Bit: xPKRU, Off: 2432, Size: 8}}
)

const (
	avxMask   = 0x7
	intelMask = 0x600e7 | 1<<xPKRU
	amdMask   = 0xe7 | 1<<xPKRU
)

// regset makes a regset with the features of used filled with their bit's number.
func regset(layout []image.XComponent, mask, used uint64) xstate {
	last := layout[len(layout)-1]
	x := xstate{make([]byte, last.Off+last.Size), layout}
	for i := range 464 {
		x.b[i] = byte(i)
	}
	le.PutUint64(x.b[xstateMaskOff:], mask)
	le.PutUint64(x.b[xstateBVOff:], used)
	for _, c := range layout {
		if used>>c.Bit&1 == 1 {
			copy(x.component(int(c.Bit)), bytes.Repeat([]byte{byte(c.Bit)}, int(c.Size)))
		}
	}
	return x
}

func fresh(layout []image.XComponent, mask uint64) xstate {
	x := regset(layout, mask, xLegacy)
	clear(x.b[:464])
	if c := x.component(xPKRU); c != nil {
		le.PutUint32(c, pkruDefault)
		le.PutUint64(x.b[xstateBVOff:], xLegacy|1<<xPKRU)
	}
	return x
}

// What is in use goes to its place on the other CPU; sizes and places of the rest do not matter.
func TestFitXState(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to []image.XComponent
		mask     uint64
		used     uint64
	}{
		{"the same CPU", intel, intel, intelMask, intelMask},
		{"Intel to AMD", intel, amd, amdMask, amdMask},
		{"AMD to Intel", amd, intel, intelMask, amdMask},
		{"AVX to AMX", avxOnly, intel, intelMask, avxMask},
		{"only AVX of AMX", intel, avxOnly, avxMask, avxMask},
		{"nothing", intel, avxOnly, avxMask, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := regset(c.from, intelMask, c.used)
			f := fresh(c.to, c.mask)
			keys := c.used>>xPKRU&1 == 1
			b, err := x.fit(f, keys)
			if err != nil {
				t.Fatal(err)
			}
			got := xstate{b, c.to}
			if len(b) != len(f.b) || !bytes.Equal(b[:464], x.b[:464]) {
				t.Errorf("%d bytes, legacy part %x", len(b), b[:464])
			}
			if mask := le.Uint64(b[xstateMaskOff:]); mask != c.mask {
				t.Errorf("features %#x, want %#x", mask, c.mask)
			}
			want := c.used
			if !keys && f.component(xPKRU) != nil {
				want |= 1 << xPKRU
				if v := le.Uint32(got.component(xPKRU)); v != pkruDefault {
					t.Errorf("rights %#x, want the kernel's own", v)
				}
			}
			if got.inUse() != want {
				t.Errorf("in use %#x, want %#x", got.inUse(), want)
			}
			for bit := 2; bit < 63; bit++ {
				if c.used>>bit&1 == 1 && !bytes.Equal(got.component(bit), x.component(bit)) {
					t.Errorf("component %d is %x", bit, got.component(bit))
				}
			}
		})
	}
}

// Only what is used and is not here is refused.
func TestFitXStateRefuses(t *testing.T) {
	for _, c := range []struct {
		used uint64
		to   []image.XComponent
		mask uint64
		want string
	}{
		{1 << 18, amd, amdMask, "AMX tiles"},
		{1 << 6, avxOnly, avxMask, "AVX-512 ZMM"},
		{1 << xPKRU, avxOnly, avxMask, "protection key rights"},
		{1 << 6, amd, avxMask, "AVX-512 ZMM"}, // the CPU has it, the kernel does not save it
		{1 << 40, intel, intelMask, "XSTATE component 40"},
	} {
		x := regset(intel, intelMask, c.used)
		if _, err := x.fit(fresh(c.to, c.mask), true); err == nil || !strings.Contains(err.Error(), "it uses "+c.want) {
			t.Errorf("%#x: %v, want %s", c.used, err, c.want)
		}
	}
	// In their initial state they are not used, whatever XSTATE_BV says.
	x := regset(intel, intelMask, 1<<xPKRU|1<<18)
	clear(x.component(18))
	le.PutUint32(x.component(xPKRU), pkruDefault)
	if _, err := x.fit(fresh(avxOnly, avxMask), true); err != nil {
		t.Error(err)
	}
	if _, err := (xstate{make([]byte, 100), intel}).fit(fresh(avxOnly, avxMask), true); err == nil {
		t.Error("a cut regset was taken")
	}
	if _, err := (xstate{x.b[:600], intel}).fit(fresh(intel, intelMask), true); err == nil {
		t.Error("a regset that ends before what it uses was taken")
	}
}

// An image of an older version does not tell the layout.
func TestImageLayout(t *testing.T) {
	f := fresh(intel, intelMask)
	old := image.Host{XStateLen: uint32(len(f.b)), XFeatures: intelMask}
	if got := imageLayout(&old, f); !slices.Equal(got, intel) {
		t.Errorf("the same CPU: %v", got)
	}
	old.XFeatures = avxMask
	if got := imageLayout(&old, f); !slices.Equal(got, avxOnly) {
		t.Errorf("another CPU: %v", got)
	}
	told := image.Host{XComponents: amd}
	if got := imageLayout(&told, f); !slices.Equal(got, amd) {
		t.Errorf("told: %v", got)
	}
}

// A thread that cannot be fitted is named, and what its process asked for decides about CPU
// features that have to be asked for.
func TestFitRegisters(t *testing.T) {
	m := &image.Manifest{Host: image.Host{XComponents: intel, XFeatures: intelMask, CPUFlags: "amx_tile pku ospke"}}
	th := image.Thread{TID: 77, Comm: "worker", XState: regset(intel, intelMask, 1<<18).b}
	m.Tasks = []image.Task{{PID: 77, Threads: []image.Thread{th}, XCompPerm: 1 << 18}}
	j := &job{m: m}
	var host *HostError
	err := j.fitRegisters(fresh(ownLayout(), le.Uint64([]byte{7, 0, 0, 0, 0, 0, 0, 0})).b)
	if !errors.As(err, &host) || !strings.Contains(err.Error(), "thread 77 (worker): it uses AMX tiles") {
		t.Errorf("got %v", err)
	}
	if got := unaskedFlags(m); !slices.Equal(got, []string{"pku", "ospke"}) {
		t.Errorf("unasked %v", got)
	}
	if got := missingFlags([]string{"amx_tile", "pku"}, nil, unaskedFlags(m)); !slices.Equal(got, []string{"amx_tile"}) {
		t.Errorf("missing %v", got)
	}
	m.Tasks[0].XCompPerm = 0
	m.Tasks[0].Threads[0].XState = regset(intel, intelMask, 1<<xPKRU).b
	if got := unaskedFlags(m); !slices.Equal(got, []string{"amx_"}) {
		t.Errorf("unasked %v", got)
	}
}
