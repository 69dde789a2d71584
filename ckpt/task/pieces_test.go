package task

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// TestPieces sets a piece of state in one process, reads it, checks what was read, writes
// all of it into a fresh process and reads that: both must be equal.
func TestPieces(t *testing.T) {
	for _, c := range []struct {
		name   string
		pieces []string
		want   func(t *testing.T, e *everything)
	}{
		{"nothing", nil, wantNothing},
		{"signals", []string{"signals"}, wantSignals},
		{"pending", []string{"signals", "pending"}, wantPending},
		{"timers", []string{"signals", "timers"}, wantTimers},
		{"creds", []string{"creds"}, wantCreds},
		{"ambient", []string{"ambient"}, wantAmbient},
		{"prctl", []string{"prctl"}, wantPrctl},
		{"batch", []string{"batch"}, wantBatch},
		{"fifo", []string{"fifo"}, wantFIFO},
		{"limits", []string{"limits"}, wantLimits},
		{"membarrier", []string{"membarrier"}, wantMembarrier},
		{"cwd", []string{"cwd=/usr/lib"}, wantCwd},
		{"chroot", []string{"cwd=/usr/bin", "chroot=/usr"}, wantChroot},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pid, _ := start(t, c.pieces...)
			e, err := readAll(t, pid)
			if err != nil {
				t.Fatal(err)
			}
			c.want(t, e)
			fresh, _ := start(t)
			if err := e.write(t, fresh); err != nil {
				t.Fatal(err)
			}
			got, err := readAll(t, fresh)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, e, got)
		})
	}
}

// compare checks that two processes are in the same state, but for what is different by nature.
func compare(t *testing.T, want, got *everything) {
	t.Helper()
	for _, e := range []*everything{want, got} {
		e.Task.PID = 0
		for i := range e.Task.ITimers {
			e.Task.ITimers[i].Value = about(e.Task.ITimers[i].Value, 1e6)
		}
		for i := range e.Task.Timers {
			e.Task.Timers[i].Value = about(e.Task.Timers[i].Value, 1e9)
			e.Task.Timers[i].TID = 0
		}
		for i := range e.Task.Threads {
			th := &e.Task.Threads[i]
			th.TID, th.Regs, th.XState, th.Rseq = 0, nil, nil, image.Rseq{}
		}
	}
	differ(t, "task", want.Task, got.Task)
	differ(t, "mm", want.MM, got.MM)
	differ(t, "sighand", want.Sighand, got.Sighand)
	differ(t, "fs", want.FS, got.FS)
}

// about rounds the time left of a timer to tens of its units: up, but for the tick that the kernel
// may have added.
func about(v, unit int64) int64 { return (v + 9*unit) / (10 * unit) }

// differ reports each field of two structs that differs.
func differ(t *testing.T, name string, want, got any) {
	t.Helper()
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	if w.Kind() != reflect.Struct {
		if !reflect.DeepEqual(want, got) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		return
	}
	for i := range w.NumField() {
		f := name + "." + w.Type().Field(i).Name
		if s, ok := w.Field(i).Interface().([]image.Thread); ok {
			for k := range s {
				differ(t, fmt.Sprintf("%s[%d]", f, k), s[k], g.Field(i).Interface().([]image.Thread)[k])
			}
			continue
		}
		differ(t, f, w.Field(i).Interface(), g.Field(i).Interface())
	}
}

// wantMembarrier: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED is 1<<4.
func wantMembarrier(t *testing.T, e *everything) {
	if e.MM.Membarrier != 1<<4 {
		t.Errorf("membarrier registrations %#x, want 0x10", e.MM.Membarrier)
	}
}

func wantNothing(t *testing.T, e *everything) {
	th := &e.Task.Threads[0]
	if th.Comm != "target" || th.RobustList == 0 || th.ClearTID == 0 || th.Rseq.Ptr == 0 || len(th.XState) == 0 {
		t.Errorf("thread %+v", th)
	}
	if !th.Sched.AllCPUs || th.Sched.TimerSlack != 50000 || th.Sched.Runtime != 0 || th.Sched.Policy != 0 {
		t.Errorf("sched %+v", th.Sched)
	}
	if filepath.Base(e.MM.Exe.Path) != "target" || e.MM.Brk < e.MM.StartBrk || e.MM.Dumpable != 1 || e.MM.LockFuture != 0 || len(e.MM.Auxv) == 0 {
		t.Errorf("mm %+v", e.MM)
	}
	if e.FS.Root != "/" || len(e.Sighand.Actions) != 0 || e.Task.Timers != nil || e.Task.Pending != nil {
		t.Errorf("%+v %+v", e.FS, e.Sighand)
	}
}

func wantSignals(t *testing.T, e *everything) {
	by := map[int32]image.Sigaction{}
	for _, a := range e.Sighand.Actions {
		by[a.Signal] = a
	}
	if len(by) != 4 || by[int32(unix.SIGHUP)].Handler != 1 || by[int32(unix.SIGCHLD)].Flags&2 == 0 ||
		by[int32(unix.SIGUSR1)].Mask != bit(int(unix.SIGINT))|bit(34+3) || by[64].Flags&0x80000000 == 0 {
		t.Errorf("actions %+v", e.Sighand.Actions)
	}
	if a := e.Task.Threads[0].AltStack; a.Size != 65536 || a.SP == 0 || a.Flags != 0 {
		t.Errorf("alternate stack %+v", a)
	}
}

func wantPending(t *testing.T, e *everything) {
	order := func(queued [][]byte) (s string) {
		for _, info := range queued {
			s += fmt.Sprintf("%d:%d ", le.Uint32(info), int32(le.Uint32(info[24:])))
		}
		return s
	}
	// SIGURG comes last in a restored process, see WriteUrgent; here it is last anyway.
	if got := order(e.Task.Pending); got != "36:100 34:100 35:101 34:101 34:102 34:102 10:0 23:0 " {
		t.Errorf("shared: %s", got)
	}
	if got := order(e.Task.Threads[0].Pending); got != "39:7 12:0 " {
		t.Errorf("own: %s", got)
	}
	if code := int32(le.Uint32(e.Task.Threads[0].Pending[1][8:])); code != -6 {
		t.Errorf("si_code of tgkill: %d", code)
	}
	if e.Task.Threads[0].SigMask != ^uint64(0)&^bit(9)&^bit(19)&^bit(32)&^bit(33) {
		t.Errorf("mask %#x", e.Task.Threads[0].SigMask)
	}
}

func wantTimers(t *testing.T, e *everything) {
	if i := e.Task.ITimers; i[0].Interval != 5250000 || i[0].Value < 990e6 || i[1].Value < 1990e6 || i[2].Interval != 3e6 {
		t.Errorf("itimers %+v", i)
	}
	var ids []int32
	for _, pt := range e.Task.Timers {
		ids = append(ids, pt.ID)
	}
	if fmt.Sprint(ids) != "[0 2 3 4 5]" {
		t.Fatalf("timer ids %v", ids)
	}
	first := e.Task.Timers[0]
	if first.SigValue != 0x123456789abc || first.Interval != 7e9+9 || first.Value < 3990e9 || first.Clock != unix.CLOCK_REALTIME {
		t.Errorf("timer %+v", first)
	}
	if tt := e.Task.Timers[2]; tt.Notify != sigevThreadID || tt.TID != e.Task.PID {
		t.Errorf("timer %+v", tt)
	}
	// A fresh process must signal its own thread.
	e.Task.Timers[2].Notify, e.Task.Timers[2].TID = 0, 0
}

func wantCreds(t *testing.T, e *everything) {
	c := e.Task.Threads[0].Creds
	if fmt.Sprint(c.UID, c.GID, c.Groups) != "[1001 1002 1003 1004] [2001 2002 2003 2004] [7 77 1234 70000]" {
		t.Errorf("ids %+v", c)
	}
	if c.Securebits != 3 || !c.NoNewPrivs || c.Eff != 1<<unix.CAP_KILL || c.Bnd&(1<<unix.CAP_CHOWN) != 0 || c.Inh&(1<<unix.CAP_CHOWN) == 0 {
		t.Errorf("caps %+v", c)
	}
	if e.MM.Dumpable != suidDumpableHere(t) {
		t.Errorf("dumpable %d", e.MM.Dumpable)
	}
}

// suidDumpableHere is fs.suid_dumpable, which a change of credentials sets the dumpable flag to.
func suidDumpableHere(t *testing.T) uint32 {
	b, err := os.ReadFile(suidDumpable)
	if err != nil {
		t.Fatal(err)
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func wantAmbient(t *testing.T, e *everything) {
	c := e.Task.Threads[0].Creds
	if c.Amb != 1<<unix.CAP_KILL|1<<unix.CAP_NET_RAW || c.Securebits != 1<<6|1<<7|1<<4 {
		t.Errorf("creds %+v", c)
	}
}

func wantPrctl(t *testing.T, e *everything) {
	th := &e.Task.Threads[0]
	if th.Comm != "a) b\xff\n(" || th.Sched.TimerSlack != 123456 {
		t.Errorf("comm %q, slack %d", th.Comm, th.Sched.TimerSlack)
	}
	if p := th.Prctl; p.PDeathSig != uint32(unix.SIGUSR2) || p.MCEKill != unix.PR_MCE_KILL_EARLY || p.TSC != unix.PR_TSC_SIGSEGV {
		t.Errorf("prctl %+v", p)
	}
	if m := e.MM; m.Dumpable != 0 || m.THPDisable != 1 || !m.KSM || m.MDWE != 1 || m.LockFuture != unix.MCL_FUTURE|unix.MCL_ONFAULT || !e.Task.Subreaper {
		m.Auxv = nil
		t.Errorf("mm %+v", m)
	}
}

func wantBatch(t *testing.T, e *everything) {
	s := e.Task.Threads[0].Sched
	if s.Policy != schedBatch || s.Nice != 7 || s.IOPrio != 2<<13|6 || s.AllCPUs != (runtime.NumCPU() == 1) || !bytes.Equal(s.Affinity, []byte{1}) || s.Runtime != 5e6 {
		t.Errorf("sched %+v", s)
	}
}

func wantFIFO(t *testing.T, e *everything) {
	s := e.Task.Threads[0].Sched
	if s.Policy != schedFIFO || s.Flags != 1 || s.Priority != 5 || s.Nice != 3 || s.IOPrio != 3<<13 {
		t.Errorf("sched %+v", s)
	}
}

func wantLimits(t *testing.T, e *everything) {
	l := e.Task.Rlimits
	if l[unix.RLIMIT_NOFILE] != (image.Rlimit{Cur: 77, Max: 99}) || l[unix.RLIMIT_CORE] != (image.Rlimit{Cur: 1 << 20, Max: infinity}) {
		t.Errorf("limits %+v", l)
	}
	if e.Task.Personality != 0x0040000|0x1000000 || e.MM.CoreFilter != 0x7f || e.Task.OOMScoreAdj != 123 || e.Task.AutoNice != 4 {
		t.Errorf("personality %#x, core filter %#x, oom_score_adj %d, autogroup %d", e.Task.Personality, e.MM.CoreFilter, e.Task.OOMScoreAdj, e.Task.AutoNice)
	}
}

func wantCwd(t *testing.T, e *everything) {
	if !reflect.DeepEqual(e.FS, image.FS{Cwd: "/usr/lib", Root: "/", Umask: 0o27}) {
		t.Errorf("fs %+v", e.FS)
	}
}

func wantChroot(t *testing.T, e *everything) {
	if !reflect.DeepEqual(e.FS, image.FS{Cwd: "/usr/bin", Root: "/usr", Umask: 0o27}) {
		t.Errorf("fs %+v", e.FS)
	}
}

// TestBarePending: a signal that is pending without a queue entry is found.
func TestBarePending(t *testing.T) {
	t.Parallel()
	pid, _ := start(t, "bare")
	e, err := readAll(t, pid)
	if err != nil {
		t.Fatal(err)
	}
	own := e.Task.Threads[0].Pending
	if len(own) == 0 || len(own[0]) != siginfoSize || !hasSignal(own, int(unix.SIGUSR2)) {
		t.Errorf("pending %v", own)
	}
}

// TestFiredTimers: timers that have fired keep their signals; a periodic ITIMER_REAL goes on.
func TestFiredTimers(t *testing.T) {
	t.Parallel()
	pid, _ := start(t, "fired")
	e, err := readAll(t, pid)
	if err != nil {
		t.Fatal(err)
	}
	if it := e.Task.ITimers[0]; it.Value != 0 || it.Interval != 50e6 || !hasSignal(e.Task.Pending, int(unix.SIGALRM)) {
		t.Errorf("itimer %+v, pending %v", it, e.Task.Pending)
	}
	if !timerPending(&e.Task, 0) || e.Task.Timers[0].Value != 0 {
		t.Errorf("timer %+v", e.Task.Timers)
	}
	fresh, _ := start(t)
	if err := e.write(t, fresh); err != nil {
		t.Fatal(err)
	}
	got, err := readAll(t, fresh)
	if err != nil {
		t.Fatal(err)
	}
	if it := got.Task.ITimers[0]; it.Interval != 50e6 || it.Value == 0 || !hasSignal(got.Task.Pending, int(unix.SIGALRM)) {
		t.Errorf("after restore: itimer %+v, pending %v", it, got.Task.Pending)
	}
}

// TestRefusedInside: what only a call in the process can find.
func TestRefusedInside(t *testing.T) {
	for piece, want := range map[string]string{
		"ldt": "local descriptor table", "keyring": "thread keyring", "sud": "syscall user dispatch",
	} {
		t.Run(piece, func(t *testing.T) {
			t.Parallel()
			pid, _ := start(t, piece)
			_, err := readAll(t, pid)
			var r *image.RefusedError
			if !errors.As(err, &r) || len(r.Findings) != 1 || r.Findings[0].Kind != want || r.Findings[0].Remedy == "" || r.Findings[0].PID == 0 {
				t.Errorf("got %v, want a refusal of %q", err, want)
			}
		})
	}
}

// TestLimitError: a hard limit that cannot be raised is named with both numbers.
func TestLimitError(t *testing.T) {
	own, err := readOwnCaps()
	if err != nil {
		t.Fatal(err)
	}
	own.prm &^= 1 << unix.CAP_SYS_RESOURCE
	has, err := readRlimits(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	has[unix.RLIMIT_NOFILE].Max = 1 << 40
	err = checkRlimits(12, has, own)
	var l *LimitError
	if !errors.As(err, &l) || l.Resource != unix.RLIMIT_NOFILE || !errors.Is(err, unix.EPERM) {
		t.Fatalf("got %v", err)
	}
	for _, w := range []string{"pid 12", "RLIMIT_NOFILE", "1099511627776", limitText(l.Has), "CAP_SYS_RESOURCE"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}
