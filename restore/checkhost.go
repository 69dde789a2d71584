package restore

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/zeebo/blake3"
)

// hostFacts is what this machine offers, to be compared with image.Host.
type hostFacts struct {
	Arch      string
	Kernel    string
	VDSO      []byte // BLAKE3
	VDSOLen   uint64
	CPU       string
	CPUFlags  []string
	XFeatures uint64 // 0: not known
}

// lookHost reads the facts. The XSTATE features are known only once a stub has been stopped.
func lookHost() (*hostFacts, error) {
	h := &hostFacts{Arch: runtime.GOARCH}
	release, err := quickread.File("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, fmt.Errorf("find out the kernel's version: %w", err)
	}
	h.Kernel = strings.TrimSpace(string(release))
	if h.VDSO, h.VDSOLen, err = ownVDSO(); err != nil {
		return nil, err
	}
	info, err := quickread.File("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("find out the CPU's features: %w", err)
	}
	h.CPU, h.CPUFlags = cpuInfo(info)
	return h, nil
}

// ownVDSO hashes the vdso of this process; every process of one kernel has the same.
func ownVDSO() (hash []byte, length uint64, err error) {
	text, err := quickread.File("/proc/self/maps")
	if err != nil {
		return nil, 0, fmt.Errorf("find our vdso: %w", err)
	}
	maps, err := procfs.ParseMaps(text)
	if err != nil {
		return nil, 0, err
	}
	i := slices.IndexFunc(maps, func(m procfs.Mapping) bool { return m.Path == "[vdso]" })
	if i < 0 {
		return nil, 0, &HostError{What: "the kernel gives no vdso to processes", Remedy: "boot without vdso=0"}
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, 0, fmt.Errorf("read our vdso: %w", err)
	}
	defer mem.Close()
	b := make([]byte, maps[i].Len())
	if _, err := mem.ReadAt(b, int64(maps[i].Start)); err != nil {
		return nil, 0, fmt.Errorf("read our vdso at %#x: %w", maps[i].Start, err)
	}
	sum := blake3.Sum256(b)
	return sum[:], maps[i].Len(), nil
}

// cpuInfo reads model name and flags of the first CPU of /proc/cpuinfo.
func cpuInfo(b []byte) (model string, flags []string) {
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			return model, strings.Fields(value)
		}
	}
	return model, nil
}

// checkHost checks that programs from the image's machine can run on this one: they may
// have found out what the CPU can do, and remember where the kernel put the code of the vdso.
func checkHost(m *image.Manifest, have *hostFacts) error {
	want := &m.Host
	if want.Arch != have.Arch {
		return &HostError{What: fmt.Sprintf("the image is of a %s machine, this one is %s", want.Arch, have.Arch), Remedy: "restore it on a machine of that kind"}
	}
	if uint64(want.VDSOLen) != have.VDSOLen || !bytes.Equal(want.VDSO, have.VDSO) {
		return &HostError{What: fmt.Sprintf("the kernel (%s) has another vdso than that of the image (%s), and the processes hold addresses in it", have.Kernel, want.Kernel),
			Remedy: "restore it under the kernel it was taken on"}
	}
	if missing := missingFlags(strings.Fields(want.CPUFlags), have.CPUFlags, unaskedFlags(m)); len(missing) > 0 {
		return &HostError{What: fmt.Sprintf("the CPU (%s) lacks %s, which that of the image (%s) had and the processes may be using", have.CPU, strings.Join(missing, " "), want.CPU),
			Remedy: "restore it on a machine with these CPU features"}
	}
	return nil
}

// userFlags are the flags of /proc/cpuinfo that stand for instructions a program may use,
// other than those of a family below; the others tell of the kernel's own use of the CPU.
var userFlags = []string{
	"fpu", "cx8", "cx16", "cmov", "mmx", "fxsr", "sse", "sse2", "syscall", "rdtscp", "lm", "3dnow", "3dnowext", "3dnowprefetch",
	"pni", "ssse3", "sse4_1", "sse4_2", "sse4a", "fma", "fma4", "xop", "tbm", "movbe", "popcnt", "aes", "xsave", "xsaveopt", "xsavec",
	"xgetbv1", "f16c", "rdrand", "rdseed", "lahf_lm", "abm", "fsgsbase", "bmi1", "bmi2", "hle", "rtm", "erms", "fsrm", "adx",
	"clflush", "clflushopt", "clwb", "clzero", "sha_ni", "pclmulqdq", "gfni", "vaes", "vpclmulqdq", "rdpid", "pku", "ospke", "serialize",
	"movdiri", "movdir64b", "waitpkg", "enqcmd", "cldemote", "user_shstk", "mwaitx", "rdpru", "sha512", "sm3", "sm4", "cmpccxadd",
}

// userFamilies are prefixes of such flags.
var userFamilies = []string{"avx", "amx_"}

func isUserFlag(f string) bool {
	return slices.Contains(userFlags, f) || slices.ContainsFunc(userFamilies, func(p string) bool { return strings.HasPrefix(f, p) })
}

// unaskedFlags returns prefixes of features that no process of the image can be using, since
// the kernel or a register would know: AMX has to be asked for, and protection keys change
// the rights that every thread begins with.
func unaskedFlags(m *image.Manifest) []string {
	amx, pku := false, false
	for i := range m.Tasks {
		t := &m.Tasks[i]
		amx = amx || t.XCompPerm != 0
		for j := range t.Threads {
			x := xstate{t.Threads[j].XState, m.Host.XComponents}
			pku = pku || x.uses(xPKRU)
		}
	}
	var out []string
	if !amx {
		out = append(out, "amx_")
	}
	if !pku {
		out = append(out, "pku", "ospke")
	}
	return out
}

// missingFlags returns the features of want that programs may be using and have lacks; they
// do not use those that begin with unasked.
func missingFlags(want, have, unasked []string) []string {
	var out []string
	for _, f := range want {
		free := slices.ContainsFunc(unasked, func(p string) bool { return strings.HasPrefix(f, p) })
		if isUserFlag(f) && !free && !slices.Contains(have, f) {
			out = append(out, f)
		}
	}
	return out
}
