package ptrace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The crash soak: a tracer process freezes a target again and again and is killed, at
// random moments, and right before its k-th step for every k. The target must not notice.
// Bounded here; CKPTFS_SOAK=1 runs all of it.

// tracerMain is the tracer that gets killed. It freezes PTRACE_TEST_PID PTRACE_TEST_LOOPS
// times, and dies by itself before step PTRACE_TEST_STEP if that is not 0. It prints
// "ready" at the start and the number of steps at the end.
func tracerMain() {
	env := func(name string) int {
		n, _ := strconv.Atoi(os.Getenv("PTRACE_TEST_" + name)) // unset: 0
		return n
	}
	pid, at := env("PID"), env("STEP")
	tr := NewTracer()
	steps := 0
	tr.SetStep(func() {
		steps++
		if steps == at {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	fmt.Println("ready")
	for range env("LOOPS") {
		if err := tr.Do(func() error { return wholeFreeze(tr, pid) }); err != nil {
			fmt.Fprintln(os.Stderr, "tracer:", err)
			os.Exit(1)
		}
		time.Sleep(100 * time.Microsecond)
	}
	fmt.Println(steps)
	os.Exit(0)
}

// wholeFreeze does all that a checkpoint does to a process.
func wholeFreeze(tr *Tracer, pid int) error {
	defer tr.Hurry()()
	f, err := freeze(tr, pid)
	if err != nil {
		return err
	}
	if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
		return err
	}
	if err := f.r.Sweep(pid, true); err != nil {
		return err
	}
	if _, err := f.r.Syscall(unix.SYS_BRK, 0); err != nil {
		return err
	}
	if err := batchOf(f, 30); err != nil {
		return err
	}
	snap, err := f.r.Snapshot(time.Now().Add(patience))
	if err != nil {
		return err
	}
	if err := f.r.Leave(); err != nil {
		return err
	}
	for i := range f.threads[1:] {
		if err := f.r.Enter(f.threads[i+1], f.states[i+1]); err != nil {
			return err
		}
		if err := batchOf(f, 3); err != nil {
			return err
		}
		if err := f.r.Leave(); err != nil {
			return err
		}
	}
	if err := f.thaw(); err != nil {
		return err
	}
	return snap.Close()
}

// batchOf runs a batch of n harmless calls in the entered thread.
func batchOf(f *frozen, n int) error {
	b, err := f.r.NewBatch()
	if err != nil {
		return err
	}
	buf := b.Alloc(24)
	for range n {
		b.Call(unix.SYS_SIGALTSTACK, 0, buf.Addr())
	}
	return b.Run()
}

// tracerCmd returns the tracer as a command.
func tracerCmd(pid, loops, step int) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PTRACE_TEST_ROLE=tracer", fmt.Sprintf("PTRACE_TEST_PID=%d", pid),
		fmt.Sprintf("PTRACE_TEST_LOOPS=%d", loops), fmt.Sprintf("PTRACE_TEST_STEP=%d", step))
	return cmd
}

// killedAtRandom runs the tracer and kills it within 30 ms.
func killedAtRandom(t *testing.T, pid int) {
	t.Helper()
	if said := killedAtRandomSaid(t, pid); said != "" {
		t.Fatalf("the tracer failed: %s", said)
	}
}

// killedAtRandomSaid returns what the tracer complained of.
func killedAtRandomSaid(t *testing.T, pid int) string {
	t.Helper()
	cmd := tracerCmd(pid, 1<<30, 0)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(out).ReadString('\n') // ready, or an error that Wait reports
	time.Sleep(rand.N(30 * time.Millisecond))
	cmd.Process.Kill()
	cmd.Wait() // killed
	return errs.String()
}

// killedAtStep runs one freeze that kills itself before step k; 0: it runs to its end.
// It returns the number of steps if it got there.
func killedAtStep(t *testing.T, pid, k int) (steps int, done bool) {
	out, err := tracerCmd(pid, 1, k).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if len(exit.Stderr) > 0 {
			t.Fatalf("the tracer failed at step %d: %s", k, exit.Stderr)
		}
		return 0, false
	}
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		t.Fatalf("the tracer said %q", out)
	}
	steps, err = strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return steps, true
}

// soakTarget is a target and the page of counters by which it shows that it lives.
type soakTarget struct {
	cmd   *exec.Cmd
	slots *os.File
}

func startTarget(t *testing.T, name string, args ...string) *soakTarget {
	t.Helper()
	path := filepath.Join(t.TempDir(), "slots")
	cmd := exec.Command(name, append([]string{path}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "PTRACE_TEST_ROLE=gotarget")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &soakTarget{cmd: cmd}
	t.Cleanup(func() { // not earlier: a wait for a child also takes its ptrace stops
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "the target runs", func() bool {
		f, err := os.Open(path)
		if err != nil {
			return false
		}
		s.slots = f
		return len(s.read()) > 0
	})
	t.Cleanup(func() { s.slots.Close() })
	time.Sleep(100 * time.Millisecond)
	return s
}

// read returns the counters of the workers, by slot.
func (s *soakTarget) read() map[int]uint64 {
	b := make([]byte, 63*8)
	n, _ := s.slots.ReadAt(b, 0) // short while the target starts
	out := map[int]uint64{}
	for i := 0; i+8 <= n; i += 8 {
		if v := binary.LittleEndian.Uint64(b[i:]); v != 0 {
			out[i/8] = v
		}
	}
	return out
}

// eintr is how many EINTRs the target saw that no signal handler explains.
func (s *soakTarget) eintr() uint64 {
	var b [8]byte
	s.slots.ReadAt(b[:], 63*8) // absent: 0
	return binary.LittleEndian.Uint64(b[:])
}

// check fails the test if the target ended or one of its workers stands still.
func (s *soakTarget) check(t *testing.T, after string) {
	t.Helper()
	eventually(t, "it has its own priority after "+after, func() bool {
		prio, _ := schedOf(t, s.cmd.Process.Pid)
		return prio == 20
	})
	before := s.read()
	deadline := time.Now().Add(patience)
	for {
		if st, err := readStat(s.cmd.Process.Pid); err != nil || st.state == 'Z' {
			t.Fatalf("%s: the target died: wait status %#x (%v)", after, st.exitCode, err)
		}
		stuck := []int(nil)
		for i, v := range s.read() {
			if v == before[i] {
				stuck = append(stuck, i)
			}
		}
		if len(stuck) == 0 {
			return
		}
		if time.Now().After(deadline) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
			t.Fatalf("%s: workers %v of the target stand still\n%s", after, stuck, status)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// checkClean makes one clean freeze and then looks for anything left behind.
func (s *soakTarget) checkClean(t *testing.T) {
	t.Helper()
	pid := s.cmd.Process.Pid
	awaitZombies(t, pid)
	if _, done := killedAtStep(t, pid, 0); !done {
		t.Fatal("the last freeze did not end")
	}
	checkUntouched(t, pid)
}

// awaitZombies waits until the helpers that a killed tracer left have come to their end,
// which a busy machine delays.
func awaitZombies(t *testing.T, pid int) {
	t.Helper()
	tids, err := tasks(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		for _, c := range children(pid, tid) {
			eventually(t, "helpers have ended", func() bool {
				st, err := readStat(c)
				return err != nil || st.state == 'Z'
			})
		}
	}
}

// checkUntouched fails the test if anything of ours is left in a process.
func checkUntouched(t *testing.T, pid int) {
	t.Helper()
	own, err := ownVDSO()
	if err != nil {
		t.Fatal(err)
	}
	maps, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := openMem(pid, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	got, _, err := readVDSO(pid, mem, maps)
	if err != nil {
		t.Fatal(err)
	}
	if string(own.bytes) != string(got) {
		t.Error("the vdso is not as it was")
	}
	for _, v := range maps {
		if isSharedAnon(v) || strings.HasPrefix(v.path, "/dev/zero") {
			t.Errorf("a mapping is left: %+v", v)
		}
	}
	tids, err := tasks(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		for _, c := range children(pid, tid) {
			st, err := readStat(c)
			t.Errorf("child %d is left: %+v (%v)", c, st, err)
		}
	}
	if by, _ := statusField(pid, "TracerPid"); by != "0" {
		t.Errorf("it is still traced by %s", by)
	}
}

func TestSoak(t *testing.T) {
	random, every := 20, 5
	if wholeSoak() {
		random, every = 1000, 1
	}
	regs := compile(t, "regs")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	static := compile(t, "regs", "-static") // no loader behind the vdso
	for _, tc := range []struct{ name, bin, mode string }{
		{"single", regs, "single"},
		{"static", static, "single"},
		{"guard", static, "guard"},
		{"locks", regs, "locks"},
		{"sleep", regs, "sleep"},
		{"go", self, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // the machine has more than one CPU, and the load only adds variety
			s := startTarget(t, tc.bin, tc.mode)
			pid := s.cmd.Process.Pid
			for i := range random {
				killedAtRandom(t, pid)
				s.check(t, fmt.Sprintf("random kill %d", i))
			}
			// Every clean freeze in between must find all that the killed ones left.
			s.checkClean(t)
			n, _ := killedAtStep(t, pid, 0)
			steps := 0
			for k := 1; k <= n; k += every {
				if _, done := killedAtStep(t, pid, k); done {
					break // fewer steps than before: fewer stray signals
				}
				s.check(t, fmt.Sprintf("kill at step %d", k))
				steps++
			}
			s.checkClean(t)
			s.check(t, "clean freeze")
			t.Logf("%d random kills, %d of %d steps, %d EINTR seen", random, steps, n, s.eintr())
		})
	}
}

// The one known hole: a target whose seccomp filter kills. How often it dies is measured
// and logged; that it goes on when no tracer is killed is tested elsewhere.
func TestSoakSeccomp(t *testing.T) {
	n := 20
	if wholeSoak() {
		n = 500
	}
	for _, mode := range []string{"filtered", "filtered-masks"} {
		died, pid := 0, 0
		for range n {
			if st, err := readStat(pid); pid == 0 || err != nil || st.state == 'Z' {
				cmd, _ := startReady(t, nil, mode)
				pid = cmd.Process.Pid
				time.Sleep(2 * time.Millisecond)
			}
			if killedAtRandomSaid(t, pid) != "" {
				continue // it met a target that had just died
			}
			time.Sleep(time.Millisecond)
			if st, err := readStat(pid); err != nil || st.state == 'Z' {
				died++
			}
		}
		t.Logf("%s: %d of %d kills of the tracer took a target with a killing filter along", mode, died, n)
	}
}
