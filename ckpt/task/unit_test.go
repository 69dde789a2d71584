package task

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

func TestParseLimits(t *testing.T) {
	b, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseLimits(b)
	if err != nil {
		t.Fatal(err)
	}
	for r, l := range got {
		var want unix.Rlimit
		if err := unix.Getrlimit(r, &want); err != nil {
			t.Fatal(err)
		}
		if l != (image.Rlimit{Cur: want.Cur, Max: want.Max}) {
			t.Errorf("%s: got %+v, want %+v", resourceName(r), l, want)
		}
	}
	for name, b := range map[string][]byte{
		"empty":      nil,
		"no line":    bytes.Replace(b, []byte("\nMax msgqueue size"), []byte("\nMax other"), 1),
		"no number":  bytes.Replace(b, []byte("\nMax open files  "), []byte("\nMax open files  x"), 1),
		"one column": []byte("\nMax cpu time 1\n"),
	} {
		if _, err := parseLimits(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCPUList(t *testing.T) {
	for list, want := range map[string][]byte{
		"0": {1}, "0-1": {3}, "1,3": {0x0a}, "0-2,8-9,15": {7, 0x83}, "7": {0x80},
	} {
		got, err := parseCPUList(list + "\n")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v", list, got, err)
		}
		if s := cpuList(want); s != list {
			t.Errorf("%x: got %q, want %q", want, s, list)
		}
	}
	for _, bad := range []string{"", "x", "3-1", "0-", "9999999", "8192"} {
		if _, err := parseCPUList(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if got := subtract([]byte{7, 1}, []byte{5}); !bytes.Equal(got, []byte{2, 1}) {
		t.Errorf("subtract: %x", got)
	}
}

func TestAffinityError(t *testing.T) {
	err := checkAffinity(12, &image.Sched{Affinity: []byte{1, 0xff, 0, 0, 0, 0, 0, 0, 0xf0}})
	if err == nil || !strings.Contains(err.Error(), "thread 12 may run on the CPUs 0,8-15,68-71, this machine has 0") {
		t.Errorf("got %v", err)
	}
	if err := checkAffinity(12, &image.Sched{Affinity: []byte{1, 0xff}, AllCPUs: true}); err != nil {
		t.Errorf("all CPUs of another machine: %v", err)
	}
}

// TestPolicyNodes: a node that this machine lacks is named, as the kernel would leave it out.
func TestPolicyNodes(t *testing.T) {
	here := &image.MemPolicy{Mode: 2, Nodes: []byte{1}}
	far := &image.MemPolicy{Mode: 3, Nodes: []byte{1, 0, 2}}
	folded := &image.MemPolicy{Mode: 3 | mpolRelativeNodes, Nodes: []byte{1, 0, 2}}
	local := &image.MemPolicy{Mode: 4}
	for _, c := range []struct {
		thread, vma *image.MemPolicy
		want        string
	}{
		{nil, nil, ""}, {here, folded, ""}, {local, local, ""},
		{far, nil, "thread 8 has a memory policy (mode 0x3) with the NUMA nodes 0,17, and this machine lets us have memory of 0"},
		{here, far, "pid 7: the memory at 0x1000 has a memory policy (mode 0x3) with the NUMA nodes 0,17"},
	} {
		err := checkPolicies(&image.Task{PID: 7, Threads: []image.Thread{{TID: 8, MemPolicy: c.thread}}}, &image.MM{VMAs: []image.VMA{{Start: 0x1000, MemPolicy: c.vma}}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestParseAutogroup(t *testing.T) {
	for s, want := range map[string]int32{"/autogroup-10 nice 0\n": 0, "/autogroup-1234 nice -7\n": -7, "": 0} {
		if got, err := parseAutogroup(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	if _, err := parseAutogroup("/autogroup-1 nice x"); err == nil {
		t.Error("no error")
	}
}

func TestActions(t *testing.T) {
	all := []image.Sigaction{
		{Signal: 1, Handler: 1},
		{Signal: 17, Flags: 2},
		{Signal: 64, Handler: 0x401000, Flags: 0x14000004, Restorer: 0x402000, Mask: 1 << 63},
	}
	if got := decodeActions(encodeActions(all)); !reflect.DeepEqual(got, all) {
		t.Errorf("got %+v", got)
	}
	// An image may hold anything.
	if got := decodeActions(encodeActions([]image.Sigaction{{Signal: 0, Handler: 1}, {Signal: 65, Handler: 1}, {Signal: -3, Handler: 1}})); got != nil {
		t.Errorf("got %+v", got)
	}
}

func TestMMMap(t *testing.T) {
	mm := &image.MM{StartCode: 1, EndCode: 2, StartData: 3, EndData: 4, StartBrk: 5, Brk: 6, StartStack: 7, ArgStart: 8, ArgEnd: 9, EnvStart: 10, EnvEnd: 11, Auxv: make([]byte, 336)}
	b := encodeMMMap(mm, 12, -1)
	if len(b) != mmMapSize {
		t.Fatalf("%d bytes", len(b))
	}
	for i := range 12 {
		if v := le.Uint64(b[8*i:]); v != uint64(i+1) {
			t.Errorf("field %d: %d", i, v)
		}
	}
	if le.Uint32(b[96:]) != 336 || le.Uint32(b[100:]) != 0xffffffff {
		t.Errorf("%x", b[96:])
	}
	if err := checkMM(1, &image.MM{Auxv: make([]byte, 8192)}); err == nil {
		t.Error("a huge auxiliary vector is accepted")
	}
	if err := checkMM(1, &image.MM{LockFuture: unix.MCL_CURRENT}); err == nil {
		t.Error("unknown mlockall flags are accepted")
	}
}

func TestSpecSetting(t *testing.T) {
	const p = unix.PR_SPEC_PRCTL
	for _, c := range []struct {
		want, own uint32
		set       uint64
		ok        bool
	}{
		{0, 0, 0, false},
		{p | unix.PR_SPEC_ENABLE, p | unix.PR_SPEC_ENABLE, 0, false},
		{p | unix.PR_SPEC_DISABLE, p | unix.PR_SPEC_ENABLE, unix.PR_SPEC_DISABLE, true},
		{p | unix.PR_SPEC_FORCE_DISABLE, p | unix.PR_SPEC_ENABLE, unix.PR_SPEC_FORCE_DISABLE, true},
		{p | unix.PR_SPEC_DISABLE, unix.PR_SPEC_NOT_AFFECTED, 0, false},
		{unix.PR_SPEC_ENABLE, p | unix.PR_SPEC_ENABLE, 0, false},
	} {
		if set, ok := specSetting(c.want, c.own); set != c.set || ok != c.ok {
			t.Errorf("%#x from %#x: %#x, %v", c.want, c.own, set, ok)
		}
	}
}

// info makes a siginfo_t.
func info(sig, code, tid int) []byte {
	b := make([]byte, siginfoSize)
	le.PutUint32(b, uint32(sig))
	le.PutUint32(b[8:], uint32(int32(code)))
	le.PutUint32(b[siTimerTID:], uint32(tid))
	return b
}

func TestSettleTimers(t *testing.T) {
	task := func() *image.Task {
		return &image.Task{
			ITimers: [3]image.ITimer{{Interval: 5, Value: 100}},
			Timers:  []image.POSIXTimer{{ID: 0, Value: 100e3}, {ID: 7, Value: 100e3, Interval: 9}},
			Pending: [][]byte{info(14, 0x80, 0)},
			Threads: []image.Thread{{Pending: [][]byte{info(34, siTimer, 0), info(34, siTimer, 7)}}},
		}
	}
	got := task()
	settleTimers(got, 50*time.Microsecond)
	if !reflect.DeepEqual(got, task()) {
		t.Errorf("not due yet: %+v", got)
	}
	settleTimers(got, 200*time.Microsecond)
	if got.ITimers[0] != (image.ITimer{Interval: 5}) || got.Timers[0].Value != 0 || got.Timers[1].Value == 0 {
		t.Errorf("due: %+v", got)
	}
	got = task()
	got.Pending, got.Threads = nil, nil
	settleTimers(got, time.Second)
	if got.ITimers[0].Value == 0 || got.Timers[0].Value == 0 {
		t.Errorf("due but without a signal: %+v", got)
	}
}

func TestAddBare(t *testing.T) {
	queued := [][]byte{info(34, -1, 0), info(34, -1, 0)}
	got := addBare(queued, bit(34)|bit(10)|bit(64))
	if len(got) != 4 || le.Uint32(got[2]) != 10 || le.Uint32(got[3]) != 64 || !bytes.Equal(got[2][4:], make([]byte, 124)) {
		t.Errorf("got %v", got)
	}
	if err := checkPending(&image.Task{PID: 3, Pending: [][]byte{{1, 2}}}); err == nil || !strings.Contains(err.Error(), "pid 3") {
		t.Errorf("a short siginfo: %v", err)
	}
}

func TestCheckCreds(t *testing.T) {
	own := ownCaps{prm: needToWrite | 1<<unix.CAP_CHOWN, bnd: 1<<41 - 1}
	c := image.Creds{Prm: 1 << unix.CAP_CHOWN, Bnd: 1}
	if err := checkCreds(3, &c, own); err != nil {
		t.Error(err)
	}
	for _, f := range []struct {
		creds image.Creds
		own   ownCaps
		words []string
	}{
		{image.Creds{Prm: 1<<unix.CAP_SYS_RESOURCE | 1<<40}, own, []string{"thread 3", "CAP_SYS_RESOURCE, CAP_CHECKPOINT_RESTORE"}},
		{image.Creds{Bnd: 1 << 45}, own, []string{"capability 45", "bounding set"}},
		{c, ownCaps{prm: own.prm, bnd: own.bnd, nnp: true}, []string{"no_new_privs"}},
		{image.Creds{}, ownCaps{}, []string{"CAP_SETGID, CAP_SETUID, CAP_SETPCAP", "as root"}},
	} {
		err := checkCreds(3, &f.creds, f.own)
		if err == nil {
			t.Errorf("%+v: no error", f.creds)
			continue
		}
		for _, w := range f.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
	}
}

func TestDefaultClamp(t *testing.T) {
	for a, want := range map[unix.SchedAttr]bool{
		{}:                            true, // a kernel without clamping
		{Util_max: 1024}:              true,
		{Util_min: 1, Util_max: 9}:    false,
		{Util_max: 512}:               false,
		{Util_min: 7, Util_max: 1024}: false,
	} {
		if got := defaultClamp(&a); got != want {
			t.Errorf("%+v: %v", a, got)
		}
	}
}

// TestTimerIDs: without exact ids, by making and deleting others, and which ids are out of reach.
func TestTimerIDs(t *testing.T) {
	pid, _ := start(t)
	want := &image.Task{PID: int32(pid), Timers: []image.POSIXTimer{
		{ID: 2, Clock: unix.CLOCK_MONOTONIC, Notify: sigevNone, Value: 1000e9},
		{ID: 3, Clock: unix.CLOCK_REALTIME, Signal: 34, SigValue: 5},
		{ID: 9, Clock: unix.CLOCK_BOOTTIME, Signal: 35, Value: 2000e9, Interval: 3},
	}}
	err := freeze(t, pid, func(s *stopped) error {
		return s.batch(0, func(b *ptrace.Batch) { writeTimers(b, want, false) })
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := readAll(t, pid)
	if err != nil {
		t.Fatal(err)
	}
	got := e.Task.Timers
	for i := range got {
		got[i].Value = about(got[i].Value, 1e9) * 10e9
	}
	if !reflect.DeepEqual(got, want.Timers) {
		t.Errorf("got %+v", got)
	}
	want.Timers[2].ID = 1000
	if err := checkTimerIDs(want, false); err == nil || !strings.Contains(err.Error(), "1000") || !strings.Contains(err.Error(), "6.15") {
		t.Errorf("got %v", err)
	}
	if err := checkTimerIDs(want, true); err != nil {
		t.Error(err)
	}
}

// TestITimersDoNotGrow: the kernel adds a tick to a CPU-time timer each time one is set.
func TestITimersDoNotGrow(t *testing.T) {
	pid, _ := start(t)
	const left = 2000e6
	want := &image.Task{PID: int32(pid), ITimers: [3]image.ITimer{{Value: left}, {Value: left}, {Value: left}}}
	err := freeze(t, pid, func(s *stopped) error {
		return s.batch(0, func(b *ptrace.Batch) { writeITimers(b, want) })
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := readAll(t, pid)
	if err != nil {
		t.Fatal(err)
	}
	for i, it := range e.Task.ITimers {
		if it.Value > left || it.Value < left-1e6 {
			t.Errorf("%s: %d us left, want at most %d", itimerNames[i], it.Value, int64(left))
		}
	}
}

// TestThreads reads a process with two threads, each by itself.
func TestThreads(t *testing.T) {
	pid, _ := start(t, "batch", "thread=plain")
	e, err := readAll(t, pid)
	if err != nil {
		t.Fatal(err)
	}
	th := e.Task.Threads
	if len(th) != 2 || th[0].TID != int32(pid) || th[0].AltStack == th[1].AltStack && th[0].ClearTID == th[1].ClearTID || th[0].RobustList == th[1].RobustList {
		t.Errorf("threads %+v", th)
	}
	if all := check(t, pid); len(all) != 0 {
		t.Error(all)
	}
}

// TestVerifyCreds: what setfsuid did not do is found.
func TestVerifyCreds(t *testing.T) {
	st, err := readStatus(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	c := credsOf(&st)
	if err := VerifyCreds(os.Getpid(), &c); err != nil {
		t.Error(err)
	}
	c.UID[3] = 12
	if err := VerifyCreds(os.Getpid(), &c); !errors.Is(err, ErrCreds) {
		t.Errorf("got %v", err)
	}
}

// TestWarnings: what cannot be given back exactly is said.
func TestWarnings(t *testing.T) {
	pid, _ := start(t)
	mine, err := readRlimits(pid)
	if err != nil {
		t.Fatal(err)
	}
	core, err := readCoreFilter(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	task := &image.Task{PID: int32(pid), SID: 1, AutoNice: 9, Rlimits: mine, Timers: []image.POSIXTimer{{ID: 5, Overrun: 3}}}
	if task.OOMScoreAdj, err = readOOMScoreAdj(pid); err != nil {
		t.Fatal(err)
	}
	if err := WriteTaskOutside(pid, task, &image.MM{CoreFilter: core, Dumpable: 2}, func(s string) { all = append(all, s) }); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(all, "\n")
	words := []string{"POSIX timer 5 was 3", "nice 9"}
	if suidDumpableHere(t) != dumpRoot {
		words = append(words, "dumpable 2")
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
}
