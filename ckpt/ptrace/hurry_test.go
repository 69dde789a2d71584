package ptrace

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// schedOf returns the priority that a thread has at the moment and the policy that it was given,
// as /proc/PID/stat has them.
func schedOf(t *testing.T, tid int) (prio, policy int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // f[0] is field 3
	prio, err1 := strconv.Atoi(f[15])
	policy, err2 := strconv.Atoi(f[38])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return prio, policy
}

// idleTarget starts a process of the policy SCHED_IDLE.
func idleTarget(t *testing.T) int {
	t.Helper()
	const schedIdle = 5
	cmd, _ := startReady(t, nil, "waitpoll")
	param := int32(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(cmd.Process.Pid), schedIdle, uintptr(unsafe.Pointer(&param))); e != 0 {
		t.Fatal(e)
	}
	wantLent(t, cmd.Process.Pid, false)
	return cmd.Process.Pid
}

// wantLent waits until a SCHED_IDLE thread has a priority of ours, or its own.
func wantLent(t *testing.T, tid int, lent bool) {
	t.Helper()
	const own, ours = 20, -1 - lenderPriority // nice 0, and the lender's, see proc(5)
	want := own
	if lent {
		want = ours
	}
	eventually(t, fmt.Sprintf("thread %d has the priority %d", tid, want), func() bool {
		prio, policy := schedOf(t, tid)
		if policy != 5 {
			t.Errorf("the policy of thread %d is %d", tid, policy)
		}
		return prio == want
	})
}

// TestLend lends to two threads in turn, faster than anybody does, and lets them go.
func TestLend(t *testing.T) {
	a, b := idleTarget(t), idleTarget(t)
	withTracer(t, func(tr *Tracer) error {
		stop := tr.Lend()
		tr.Lend()() // one in the other: nothing
		if !tr.Lends() {
			t.Error("it does not lend: CAP_SYS_NICE is missing")
			return nil
		}
		l := tr.lender
		l.lend(a)
		wantLent(t, a, true)
		l.lend(a)
		l.lend(b)
		wantLent(t, a, false)
		wantLent(t, b, true)
		l.reclaim()
		if prio, _ := schedOf(t, b); prio != 20 {
			t.Errorf("the priority is %d right after reclaim", prio)
		}
		for i := range 2000 {
			l.lend([]int{a, b}[i%2])
			if i%3 == 0 {
				time.Sleep(time.Duration(i%100) * time.Microsecond)
				l.reclaim()
				pa, _ := schedOf(t, a)
				pb, _ := schedOf(t, b)
				if pa != 20 || pb != 20 {
					t.Fatalf("round %d: the priorities are %d and %d after reclaim", i, pa, pb)
				}
			}
		}
		l.lend(a)
		wantLent(t, a, true)
		wantLent(t, b, false)

		th, err := tr.Seize(a, 0)
		if err != nil {
			return err
		}
		if _, err := th.WaitStop(time.Now().Add(patience)); err != nil {
			return err
		}
		l.lend(a)
		wantLent(t, a, true)
		if err := th.Detach(); err != nil {
			return err
		}
		wantLent(t, a, false)
		l.lend(b)
		wantLent(t, b, true)
		stop()
		wantLent(t, b, false)
		return nil
	})
	checkAlive(t, a)
	checkAlive(t, b)
}

// TestLendEnds lends to threads that end, exec or do not exist.
func TestLendEnds(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exec sleep 100")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	withTracer(t, func(tr *Tracer) error {
		defer tr.Lend()()
		l := tr.lender
		lent := func() bool { prio, _ := schedOf(t, pid); return prio == -1-lenderPriority }
		l.lend(pid)
		eventually(t, "it is lent to", lent)
		if _, err := in.Write([]byte("\n")); err != nil {
			return err
		}
		eventually(t, "the loan ends with the exec", func() bool { return comm(pid) == "sleep" && l.done.Load() == l.want.Load() })
		l.lend(pid)
		eventually(t, "it is lent to again", lent)
		if err := cmd.Process.Kill(); err != nil {
			return err
		}
		eventually(t, "the loan ends with the process", func() bool { return l.done.Load() == l.want.Load() })
		l.lend(1 << 22) // above pid_max
		l.reclaim()
		return nil
	})
}

// TestLendRTTime does not lend to a process that must not have a processor for long in realtime,
// nor takes realtime priority when that holds for itself.
func TestLendRTTime(t *testing.T) {
	pid := idleTarget(t)
	if err := unix.Prlimit(pid, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: 1000, Max: 1000}, nil); err != nil {
		t.Fatal(err)
	}
	withTracer(t, func(tr *Tracer) error {
		defer tr.Lend()()
		tr.lender.lend(pid)
		if tr.lender.to != 0 {
			t.Error("it was lent to")
		}
		return nil
	})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTTIME, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: 3600e6, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_RTTIME, &was)
	withTracer(t, func(tr *Tracer) error {
		defer tr.Lend()()
		if tr.Lends() {
			t.Error("it lends although its own time is limited")
		}
		return nil
	})
}

// lenderMain lends to PTRACE_TEST_PID until it is killed.
func lenderMain() {
	pid, _ := strconv.Atoi(os.Getenv("PTRACE_TEST_PID"))
	NewTracer().Do(func() error {
		tr := &Tracer{}
		tr.Lend()
		tr.lender.lend(pid)
		fmt.Println("ready")
		select {}
	})
}

// TestLenderKilled kills who lends: the tracee has its own priority again.
func TestLenderKilled(t *testing.T) {
	pid := idleTarget(t)
	for range 5 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "PTRACE_TEST_ROLE=lender", fmt.Sprintf("PTRACE_TEST_PID=%d", pid))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		wantLent(t, pid, true)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		wantLent(t, pid, false)
		if err := cmd.Wait(); err == nil {
			t.Error("it was not killed")
		}
	}
	checkAlive(t, pid)
}

// TestHurry looks at the tracing thread's own policy, which is what it was afterwards.
func TestHurry(t *testing.T) {
	for _, policy := range []uint32{0, 3, schedRR} { // SCHED_OTHER, SCHED_BATCH
		withTracer(t, func(tr *Tracer) error {
			attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Nice: 3}
			if policy == schedRR {
				attr.Nice, attr.Priority = 0, 7
			}
			if err := unix.SchedSetAttr(0, attr, 0); err != nil {
				return err
			}
			stop := tr.Hurry()
			during, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				return err
			}
			want := uint32(schedFIFO)
			if policy == schedRR {
				want = schedRR
			}
			if during.Policy != want {
				t.Errorf("policy %d became %d, not %d", policy, during.Policy, want)
			}
			stop()
			after, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				return err
			}
			if after.Policy != policy || after.Nice != attr.Nice || after.Priority != attr.Priority || after.Flags != 0 {
				t.Errorf("%+v became %+v", *attr, *after)
			}
			return nil
		})
	}
}

// TestHurried looks at the policy of a goroutine's thread, also without CAP_SYS_NICE but with a limit
// that allows for realtime.
func TestHurried(t *testing.T) {
	attr := func() *unix.SchedAttr {
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	check := func(t *testing.T) {
		t.Helper()
		before := attr()
		Hurried(func() {
			if a := attr(); a.Policy != schedFIFO || a.Flags != schedResetOnFork {
				t.Errorf("hurried: %+v", a)
			}
		})
		if a := attr(); a.Policy != before.Policy || a.Nice != before.Nice {
			t.Errorf("before %+v, after %+v", before, a)
		}
	}
	withTracer(t, func(*Tracer) error { check(t); return nil })

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTPRIO, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: 1, Max: max(was.Max, 1)}); err != nil {
		t.Logf("the limit cannot be raised: %v", err) // without CAP_SYS_RESOURCE; what follows then needs nice
	}
	defer unix.Setrlimit(unix.RLIMIT_RTPRIO, &was)
	withTracer(t, func(*Tracer) error { // whose thread ends with it
		hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(hdr, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_SYS_NICE
		if err := unix.Capset(hdr, &data[0]); err != nil {
			return err
		}
		before := attr()
		Hurried(func() {})
		if a := attr(); a.Policy != before.Policy || a.Nice != before.Nice {
			t.Errorf("without the capability: before %+v, after %+v", before, a)
		}
		return nil
	})
}

// TestHurryEnds stays in a hurry for longer than realtime lasts.
func TestHurryEnds(t *testing.T) {
	withTracer(t, func(*Tracer) error {
		before, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			return err
		}
		stop := hurryFor(time.Millisecond)
		eventually(t, "realtime ends", func() bool {
			a, err := unix.SchedGetAttr(0, 0)
			return err == nil && a.Policy == before.Policy && a.Nice == -20
		})
		stop()
		after, err := unix.SchedGetAttr(0, 0)
		if err == nil && (after.Policy != before.Policy || after.Nice != before.Nice || after.Flags != before.Flags) {
			t.Errorf("before %+v, after %+v", *before, *after)
		}
		return err
	})
}
