package restore

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

func TestSentences(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&PIDTakenError{PID: 12, Comm: "cat", Cmdline: "cat /etc/passwd"}, "pid 12 is in use by cat (cat /etc/passwd); end that process, or wait until it ends, and restore again"},
		{&PIDTakenError{PID: 12, Comm: "kthreadd"}, "pid 12 is in use by kthreadd; end that process, or wait until it ends, and restore again"},
		{&PIDTakenError{PID: 12, Comm: "sh", Cmdline: "sh", Use: "as the session of pid 13,"}, "pid 12 is in use as the session of pid 13, by sh; end that process, or wait until it ends, and restore again"},
		{&FileError{PID: 5, FD: 3, Path: "/x", What: "it is missing", Remedy: "put it back", Err: unix.ENOENT}, "pid 5 fd 3: /x: it is missing: no such file or directory; put it back"},
		{&FileError{PID: 5, FD: NoFD, Path: "/x", What: "it was mapped and is gone", Remedy: "put it back"}, "pid 5: /x: it was mapped and is gone; put it back"},
		{&FileError{PID: 5, FD: 3, Path: "/x", Err: errors.New("open file /x is missing; put it back")}, "pid 5 fd 3: open file /x is missing; put it back"},
		{&HostError{What: "the CPU lacks avx", Remedy: "use another machine"}, "the CPU lacks avx; use another machine"},
		{&HostError{What: "clone3", Err: unix.EPERM, Remedy: "be root"}, "clone3: operation not permitted; be root"},
		{&AccessError{PID: 5, TID: 5, CallerUID: 1000, What: "it runs as uid 0"}, "pid 5: uid 1000 may not restore it: it runs as uid 0; restore it as root"},
		{&AccessError{PID: 5, TID: 6, CallerUID: 1000, What: "it has group 0"}, "pid 5 thread 6: uid 1000 may not restore it: it has group 0; restore it as root"},
		{&ImageError{5, "it has no main thread"}, "image: pid 5: it has no main thread"},
		{&ImageError{0, "it holds no process"}, "image: it holds no process"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	if err := error(&FileError{Err: unix.ENOENT}); !errors.Is(err, os.ErrNotExist) {
		t.Error("FileError hides its cause")
	}
	if err := error(&HostError{Err: unix.EPERM}); !errors.Is(err, unix.EPERM) {
		t.Error("HostError hides its cause")
	}
}

func TestFreeRange(t *testing.T) {
	for _, c := range []struct {
		used         []span
		lo, hi, size uint64
		want         uint64
		ok           bool
	}{
		{nil, 10, 100, 5, 10, true},
		{[]span{{0, 20}}, 10, 100, 5, 20, true},
		{[]span{{14, 20}}, 10, 100, 5, 20, true},
		{[]span{{15, 20}}, 10, 100, 5, 10, true},
		{[]span{{50, 60}, {10, 40}}, 10, 100, 10, 40, true},
		{[]span{{10, 50}, {20, 30}, {52, 60}}, 10, 100, 5, 60, true}, // address spaces overlap each other
		{[]span{{10, 98}}, 10, 100, 5, 0, false},
		{[]span{{10, 200}}, 10, 100, 5, 0, false},
		{[]span{{99, 200}}, 10, 100, 95, 0, false},
	} {
		if got, ok := freeRange(slices.Clone(c.used), c.lo, c.hi, c.size); got != c.want || ok != c.ok {
			t.Errorf("freeRange(%v, %d, %d, %d) = %d, %v, want %d, %v", c.used, c.lo, c.hi, c.size, got, ok, c.want, c.ok)
		}
	}
}

func TestPickHole(t *testing.T) {
	mms := []image.MM{
		{VMAs: []image.VMA{{Start: 0x400000, End: 0x500000}}},
		{VMAs: []image.VMA{{Start: 0x10000, End: 0x110000}, {Start: 0x7fff00000000, End: 0x7fff00100000}}},
	}
	at, err := pickHole(mms, holeLen)
	if err != nil || at != 0x500000 && at != 0x110000 {
		t.Fatalf("hole at %#x, %v", at, err)
	}
	if at == 0x110000 && at+holeLen+holeGuard > 0x400000 {
		t.Errorf("hole at %#x reaches %#x", at, at+holeLen+holeGuard)
	}
	full := []image.MM{{VMAs: []image.VMA{{Start: 0x10000, End: 0x7ff000000000}}}}
	var host *HostError
	if _, err := pickHole(full, holeLen); !errors.As(err, &host) {
		t.Errorf("full address space: %v", err)
	}
}

func TestStubELF(t *testing.T) {
	h := hole(0x10000000)
	f, err := elf.NewFile(bytes.NewReader(stubELF(h)))
	if err != nil {
		t.Fatal(err)
	}
	end := uint64(0)
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			end = max(end, p.Vaddr+p.Memsz)
			if p.Vaddr < uint64(h) || p.Flags&elf.PF_X == 0 {
				t.Errorf("segment %+v", p.ProgHeader)
			}
		}
	}
	if end != h.end() || f.Type != elf.ET_EXEC || f.Entry < uint64(h) || f.Entry >= h.insn() {
		t.Errorf("ends at %#x, want %#x; entry %#x", end, h.end(), f.Entry)
	}
}

func TestCheckHost(t *testing.T) {
	have := &hostFacts{Arch: "amd64", Kernel: "6.18", VDSO: []byte{1}, VDSOLen: 8192, CPU: "C", CPUFlags: []string{"sse2", "avx2", "ibrs"}}
	good := image.Host{Arch: "amd64", Kernel: "6.17", VDSO: []byte{1}, VDSOLen: 8192, CPU: "D", CPUFlags: "sse2 avx2 vnmi"}
	check := func(h *image.Host) error { return checkHost(&image.Manifest{Host: *h}, have) }
	if err := check(&good); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		change func(h *image.Host)
		want   string
	}{
		{func(h *image.Host) { h.Arch = "arm64" }, "the image is of a arm64 machine, this one is amd64"},
		{func(h *image.Host) { h.VDSO = []byte{2} }, "the kernel (6.18) has another vdso than that of the image (6.17)"},
		{func(h *image.Host) { h.VDSOLen = 4096 }, "the kernel (6.18) has another vdso"},
		{func(h *image.Host) { h.CPUFlags = "sse2 avx512f amx_tile pku" }, "the CPU (C) lacks avx512f, which that of the image (D) had"}, // the others are not used
	} {
		h := good
		c.change(&h)
		var host *HostError
		if err := check(&h); !errors.As(err, &host) || !strings.HasPrefix(err.Error(), c.want) || host.Remedy == "" {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestCompareMapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib")
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	good := image.MappedFile{Path: path, Size: st.Size, MTime: st.Mtim.Nano(), Mode: st.Mode, Ino: st.Ino + 1}
	if err := checkMappedFile(7, &good); err != nil {
		t.Errorf("another inode with the same content: %v", err)
	}
	for _, c := range []struct {
		change func(f *image.MappedFile)
		want   string
	}{
		{func(f *image.MappedFile) { f.Path += "x" }, "it was mapped and cannot be found"},
		{func(f *image.MappedFile) { f.Size++ }, "it was mapped with 8 bytes and has 7 now"},
		{func(f *image.MappedFile) { f.MTime-- }, "it was mapped and has been changed since"},
		{func(f *image.MappedFile) { f.Mode = f.Mode&^0o777 | 0o755 }, "it was mapped with mode 0755 and has 0644 now"},
		{func(f *image.MappedFile) { f.Mode = unix.S_IFDIR }, "it was mapped and is a file of another kind now"},
	} {
		f := good
		c.change(&f)
		var fe *FileError
		if err := checkMappedFile(7, &f); !errors.As(err, &fe) || !strings.HasPrefix(fe.What, c.want) || fe.PID != 7 || fe.FD != NoFD || fe.Remedy == "" {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestExceeds(t *testing.T) {
	user := func() (*image.Task, *image.Thread) {
		return &image.Task{}, &image.Thread{Creds: image.Creds{UID: [4]uint32{7, 7, 7, 7}, GID: [4]uint32{8, 8, 8, 8}, Groups: []uint32{8, 9}, Bnd: ^uint64(0)}}
	}
	task, th := user()
	if what := exceeds(task, th, 7, []uint32{8, 9}); what != "" {
		t.Error(what)
	}
	for _, c := range []struct {
		change func(t *image.Task, th *image.Thread)
		want   string
	}{
		{func(_ *image.Task, th *image.Thread) { th.Creds.UID[2] = 0 }, "it runs as uid 0"},
		{func(_ *image.Task, th *image.Thread) { th.Creds.GID[3] = 1 }, "it has group 1"},
		{func(_ *image.Task, th *image.Thread) { th.Creds.Groups[0] = 2 }, "it has group 2"},
		{func(_ *image.Task, th *image.Thread) { th.Creds.Amb = 4 }, "it has the capabilities 0x4"},
		{func(_ *image.Task, th *image.Thread) { th.Creds.Inh = 4 }, "it has the capabilities 0x4"},
		{func(_ *image.Task, th *image.Thread) { th.Creds.Securebits = 1 }, "it has the securebits 0x1"},
		{func(_ *image.Task, th *image.Thread) { th.Sched.Policy = unix.SCHED_FIFO }, "it has the real-time scheduling policy 1"},
		{func(_ *image.Task, th *image.Thread) { th.Sched.Nice = -1 }, "it has the nice value -1"},
		{func(t *image.Task, _ *image.Thread) { t.OOMScoreAdj = -5 }, "it has the oom_score_adj -5"},
	} {
		task, th := user()
		c.change(task, th)
		if what := exceeds(task, th, 7, []uint32{8, 9}); what != c.want {
			t.Errorf("got %q, want %q", what, c.want)
		}
	}
}

func TestCheckSharing(t *testing.T) {
	build := func() *image.Manifest {
		th := func(tid int32, ref image.ObjRef) image.Thread { return image.Thread{TID: tid, FDTable: ref, FS: ref} }
		return &image.Manifest{Tasks: []image.Task{
			{PID: 1, MM: 1, Sighand: 1, State: image.TaskRunning, Threads: []image.Thread{th(1, 1), th(2, 1)}},
			{PID: 3, MM: 2, Sighand: 2, State: image.TaskRunning, Threads: []image.Thread{th(3, 2)}},
			{PID: 4, State: image.TaskZombie},
		}}
	}
	if err := checkSharing(build()); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		change func(m *image.Manifest)
		want   string
	}{
		{func(m *image.Manifest) { m.Tasks[1].MM = 1 }, "image: pid 3: it shares its memory with pid 1"},
		{func(m *image.Manifest) { m.Tasks[1].Threads[0].FDTable = 1 }, "image: pid 3: it shares its descriptor table with pid 1"},
		{func(m *image.Manifest) { m.Tasks[0].Threads[1].FS = 2 }, "image: pid 1: its thread 2 has a working directory of its own"},
		{func(m *image.Manifest) { m.Tasks[0].Threads[1].FDTable = 0 }, "image: pid 1: its thread 2 has the descriptor table of pid 0"},
		{func(m *image.Manifest) {
			m.Tasks[1].Threads = append(m.Tasks[1].Threads, image.Thread{TID: 5, FDTable: 1, FS: 2})
		}, "image: pid 3: its thread 5 has the descriptor table of pid 1, not that of its process"},
		{func(m *image.Manifest) { m.Tasks[0].Threads[1].FDTable, m.Tasks[1].PPID = 2, 1 }, "image: pid 3: it shares its descriptor table with pid 1"},
		{func(m *image.Manifest) { m.Tasks[0].Sighand = 0 }, "image: pid 1: it has no signal handlers"},
		{func(m *image.Manifest) { m.Tasks[1].Threads = nil }, "image: pid 3: it has no main thread"},
		{func(m *image.Manifest) { m.Tasks[1].Threads[0].Seccomp = make([]image.Seccomp, 1) }, "image: pid 3: its thread 3 has a seccomp filter"},
	} {
		m := build()
		c.change(m)
		if err := checkSharing(m); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestTakenPID(t *testing.T) {
	own := os.Getpid()
	taken, err := takenPID(map[int]bool{own: true})
	if err != nil || taken == nil || taken.PID != own || taken.Comm == "" || taken.Cmdline == "" || taken.Use != "" {
		t.Errorf("our own pid: %+v, %v", taken, err)
	}
	start := time.Now()
	if err := waitPIDs(t.Context(), map[int]bool{own: true}, start.Add(time.Minute)); !errors.As(err, new(*PIDTakenError)) || time.Since(start) >= reapPatience {
		t.Errorf("waited %v: %v", time.Since(start), err)
	}
	if taken, err := takenPID(map[int]bool{1 << 29: true}); err != nil || taken != nil {
		t.Errorf("a pid that cannot be: %+v, %v", taken, err)
	}
	if !pidInUse(own) || pidInUse(1<<29) {
		t.Error("pidInUse")
	}
}

func TestCompareMaps(t *testing.T) {
	const r, rw = unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE
	file := image.MappedFile{Path: "/lib/x"}
	vmas := []image.VMA{
		{Start: 0x1000, End: 0x2000, Kind: image.VMAFilePrivate, Prot: r, Flags: unix.MAP_PRIVATE, File: file},
		{Start: 0x2000, End: 0x3000, Kind: image.VMAFilePrivate, Prot: r, Flags: unix.MAP_PRIVATE, File: file, Offset: 0x1000},
		{Start: 0x3000, End: 0x4000, Kind: image.VMAAnon, Prot: rw, Flags: unix.MAP_PRIVATE},
		{Start: 0x5000, End: 0x6000, Kind: image.VMASegment, Prot: rw, Flags: unix.MAP_SHARED, Segment: 1, Offset: 0x2000},
		{Start: 0x7000, End: 0x8000, Kind: image.VMAAnon, Prot: rw, Flags: unix.MAP_PRIVATE, Name: "[heap]"},
	}
	good := func() []procfs.Mapping {
		return []procfs.Mapping{
			{Start: 0x1000, End: 0x3000, Read: true, Ino: 5, Path: "/lib/x"},
			{Start: 0x3000, End: 0x4000, Read: true, Write: true},
			{Start: 0x5000, End: 0x6000, Read: true, Write: true, Shared: true, Ino: 9, Offset: 0x2000, Path: "/dev/zero", Deleted: true},
			{Start: 0x7000, End: 0x7800, Read: true, Write: true, Path: "[heap]"},
			{Start: 0x7800, End: 0x8000, Read: true, Write: true, Path: "[heap]"},
			{Start: 0xffffffffff600000, End: 0xffffffffff601000, Exec: true, Path: "[vsyscall]"},
		}
	}
	if err := compareMaps(vmas, good()); err != nil {
		t.Error(err)
	}
	for _, change := range []func(m []procfs.Mapping) []procfs.Mapping{
		func(m []procfs.Mapping) []procfs.Mapping { m[0].Offset = 0x1000; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[0].Write = true; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[1].End += 0x1000; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[2].Shared = false; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[2].Offset = 0; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[3].Path = ""; return m },
		func(m []procfs.Mapping) []procfs.Mapping { m[0].Path = "/lib/y"; return m },
		func(m []procfs.Mapping) []procfs.Mapping { return m[:4] },
		func(m []procfs.Mapping) []procfs.Mapping { return m[1:] },
		func(m []procfs.Mapping) []procfs.Mapping {
			return append(m, procfs.Mapping{Start: 0x9000, End: 0xa000})
		},
	} {
		if err := compareMaps(vmas, change(good())); err == nil {
			t.Errorf("no difference seen: %+v", change(good()))
		}
	}
}

func TestSleepArgs(t *testing.T) {
	j := &job{}
	for _, c := range []struct {
		bl   image.Blocked
		ok   bool
		arg2 uint64
	}{
		{image.Blocked{NR: unix.SYS_POLL, Args: [6]uint64{1, 2, 5000}, Remaining: 1_500_001}, true, 2},
		{image.Blocked{NR: unix.SYS_POLL, Args: [6]uint64{1, 2, 5000}, Remaining: fullTime}, true, 5000},
		{image.Blocked{NR: unix.SYS_POLL, Args: [6]uint64{1, 2, ^uint64(0)}, Remaining: noTimeout}, true, ^uint64(0)},
		{image.Blocked{NR: unix.SYS_NANOSLEEP, Args: [6]uint64{1, 2, 3}, Remaining: fullTime}, true, 3},
		{image.Blocked{NR: unix.SYS_READ, Remaining: 5}, false, 0},
	} {
		args, ok, err := j.sleepArgs(nil, &c.bl)
		if err != nil || ok != c.ok || args[2] != c.arg2 {
			t.Errorf("%+v: %v %v %v", c.bl, args, ok, err)
		}
	}
}

func TestWrites(t *testing.T) {
	for _, c := range []struct {
		v    image.VMA
		want bool
	}{
		{image.VMA{Kind: image.VMAFileShared, Flags: unix.MAP_SHARED, Prot: unix.PROT_READ, VMFlags: []string{"rd", "mr", "mw"}}, true},
		{image.VMA{Kind: image.VMAFileShared, Flags: unix.MAP_SHARED, Prot: unix.PROT_READ, VMFlags: []string{"rd", "mr"}}, false},
		{image.VMA{Kind: image.VMAFilePrivate, Flags: unix.MAP_PRIVATE, Prot: unix.PROT_WRITE, VMFlags: []string{"mw"}}, false},
		{image.VMA{Kind: image.VMASegment, Flags: unix.MAP_SHARED, Prot: unix.PROT_WRITE}, true},
	} {
		if got := writes(&c.v); got != c.want {
			t.Errorf("%+v: %v", c.v, got)
		}
	}
}

func TestAnonName(t *testing.T) {
	for shown, want := range map[string]string{"[anon:a b]": "a b", "[anon_shmem:x]": "x", "[anon:]": "", "[heap]": "-", "": "-", "[anon:x": "-"} {
		got, ok := anonName(shown)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", shown, got, want)
		}
	}
}

func TestCopyTime(t *testing.T) {
	m := &image.Manifest{MMs: []image.MM{{VMAs: []image.VMA{{Extents: []image.Extent{{Len: 64 << 20}}}}}}, Segments: []image.Segment{{Extents: []image.Extent{{Len: 32 << 20}}}}}
	if got := copyTime(m); got != 3*time.Second {
		t.Error(got)
	}
}
