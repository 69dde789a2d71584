package ckpt

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// hostInfo describes this machine, for a restore to see whether the image fits its own. The
// clocks are read in the freeze.
func hostInfo(root int) (image.Host, error) {
	h := image.Host{Arch: runtime.GOARCH}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return h, fmt.Errorf("uname: %w", err)
	}
	h.Kernel, h.Hostname = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Nodename[:])
	boot, err := quickread.File("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return h, err
	}
	h.BootID = strings.TrimSpace(string(boot))
	if h.CPU, h.CPUFlags, err = cpuInfo(); err != nil {
		return h, err
	}
	if h.VDSO, h.VDSOLen, err = vdsoHash(); err != nil {
		return h, err
	}
	for _, c := range ptrace.XComponents() {
		h.XComponents = append(h.XComponents, image.XComponent{Bit: uint32(c.Bit), Off: uint32(c.Off), Size: uint32(c.Size)})
	}
	h.Cgroup = cgroup(root)
	return h, nil
}

// cpuInfo returns model name and flags of the first CPU.
func cpuInfo() (model, flags string, err error) {
	b, err := quickread.File("/proc/cpuinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(line, ":")
		switch key, val = strings.TrimSpace(key), strings.TrimSpace(val); {
		case key == "model name" && model == "":
			model = val
		case key == "flags" && flags == "":
			flags = val
		}
	}
	return model, flags, nil
}

// vdsoHash is the BLAKE3 of this kernel's vdso as it is mapped into this process. The
// target's is the same, but its tail may hold what a killed checkpoint left there.
func vdsoHash() ([]byte, uint32, error) {
	maps, err := readMaps(os.Getpid())
	if err != nil {
		return nil, 0, err
	}
	for _, m := range maps {
		if m.Path != "[vdso]" {
			continue
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil, 0, err
		}
		defer mem.Close()
		b := make([]byte, m.End-m.Start)
		if _, err := mem.ReadAt(b, int64(m.Start)); err != nil {
			return nil, 0, fmt.Errorf("read the vdso: %w", err)
		}
		sum := blake3.Sum256(b)
		return sum[:], uint32(len(b)), nil
	}
	return nil, 0, fmt.Errorf("this kernel maps no vdso (vdso=0 on its command line?), and ckptfs needs one")
}

func clock(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0 // cannot fail for these clocks; the value informs, nothing depends on it
	}
	return ts.Nano()
}

// cgroup is the path of a process in the v2 hierarchy, or in the first v1 one.
func cgroup(pid int) string {
	b, err := quickread.File(procPath(pid, "cgroup"))
	if err != nil {
		return ""
	}
	first := ""
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" {
			return f[2]
		}
		if first == "" {
			first = f[2]
		}
	}
	return first
}

// xfeatures reads the mask of features that the kernel keeps in an XSTATE regset: the first
// of the bytes that it reserves for software (struct user_xstateregs, arch/x86 ptrace).
func xfeatures(xstate []byte) uint64 {
	if len(xstate) < 472 {
		return 0
	}
	return binary.LittleEndian.Uint64(xstate[464:])
}

func now() int64 { return time.Now().UnixNano() }
