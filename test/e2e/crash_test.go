package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// victims are programs that check themselves all the time, while the process that takes a
// checkpoint of them is killed at any moment.
var victims = []program{
	{name: "single thread with a timer", prog: "timers"},
	{name: "registers", prog: "cpu"},
	{name: "threads on mutexes", prog: "threads", args: []string{"8"}},
	{name: "asks for children", prog: "lonely", args: []string{"killed"}},
	{name: "blocked in system calls", prog: "blocked", args: []string{"4", "killed"}},
	{name: "go", prog: "godaemon"},
}

// holders are programs with sockets, which a checkpoint looks into by changing their settings for a
// moment: repair mode, peek offsets, SO_PASSCRED. What is harmed shows when they check themselves.
var holders = []program{
	{name: "TCP connections", prog: "inet", args: []string{"connected"}},
	{name: "unix sockets", prog: "unixsock", args: []string{"pairs"}},
	{name: "files under way", prog: "unixsock", args: []string{"flight"}},
}

// TestKilledAtRandom kills `ckptfs dump` at random moments. The target survives, and a whole
// checkpoint afterwards leaves nothing of the broken ones behind.
func TestKilledAtRandom(t *testing.T) {
	for _, v := range slices.Concat(victims, holders) {
		t.Run(v.name, func(t *testing.T) {
			r := harness.Start(t, v.prog, v.args...)
			members := len(r.Tree())
			full := timeOf(func() { r.DumpTo("/dev/null") })
			rng := rand.New(rand.NewPCG(3, 3))
			for i := range soak(t, 25) {
				c := exec.Command(harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null")
				harness.RunKilled(t, c, time.Duration(rng.Int64N(int64(full))))
				r.Alive()
				if s := harness.State(r.PID); s == 'T' || s == 't' {
					t.Fatalf("after %d kills the target is in state %q", i+1, s)
				}
			}
			after(t, r, members)
		})
	}
}

// TestKilledAtEveryStep kills `ckptfs dump` at its first, second, third … ptrace call, until it
// makes no more. strace counts and kills.
func TestKilledAtEveryStep(t *testing.T) {
	strace := harness.Tool(t, "strace")
	for _, v := range victims {
		t.Run(v.name, func(t *testing.T) {
			r := harness.Start(t, v.prog, v.args...)
			members := len(r.Tree())
			steps, stride := 0, 7
			if soak(t, 1) > 1 {
				stride = 1
			}
			for k := 1; ; k += stride {
				got := harness.Run(t, strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=ptrace", "-e", fmt.Sprintf("inject=ptrace:signal=KILL:when=%d", k),
					harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null")
				r.Alive()
				if got.Code == 0 {
					break // it made fewer calls than k
				}
				steps++
			}
			t.Logf("%d kills", steps)
			if steps < 5 {
				t.Errorf("only %d ptrace calls were met", steps)
			}
			after(t, r, members)
		})
	}
}

// TestKilledUnderHandler restores a process in which a signal handler has yet to return into
// what a killed checkpoint left in its vdso.
func TestKilledUnderHandler(t *testing.T) {
	strace := harness.Tool(t, "strace")
	for _, args := range [][]string{nil, {"alt"}} {
		t.Run("handler "+strings.Join(args, ""), func(t *testing.T) {
			r := harness.Start(t, "handler", args...)
			rng := rand.New(rand.NewPCG(5, 5))
			for try := 1; ; try++ {
				stop := make(chan struct{})
				go signalFrozen(r.PID, stop)
				harness.Run(t, strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=ptrace",
					"-e", fmt.Sprintf("inject=ptrace:signal=KILL:when=%d", 20+rng.IntN(40)),
					harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null")
				close(stop)
				r.Alive()
				image := r.Dump()
				if hasLeftovers(t, image) {
					r.Alive()
					r.Kill()
					r.Restore(image)
					r.Pass(true)
					t.Logf("at try %d", try)
					return
				}
				if try == 50 {
					t.Fatal("no image caught the handler above the way back in 50 tries")
				}
			}
		})
	}
}

// signalFrozen sends a process SIGUSR1 as soon as it is seen frozen by a tracer.
func signalFrozen(pid int, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		if harness.State(pid) == 't' {
			unix.Kill(pid, unix.SIGUSR1) // the test says if it is gone
			return
		}
	}
}

// hasLeftovers asks an image whether it holds bytes of a killed checkpoint.
func hasLeftovers(t *testing.T, path string) bool {
	t.Helper()
	var shown struct {
		Manifest struct {
			MMs []struct{ Leftovers []any }
		}
	}
	if err := json.Unmarshal([]byte(harness.Must(t, harness.Binary(), "show", "--json", path).Stdout), &shown); err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(shown.Manifest.MMs, func(m struct{ Leftovers []any }) bool { return len(m.Leftovers) > 0 })
}

// after takes one whole checkpoint: that cleans up what the killed ones left, and then the
// program passes.
func after(t *testing.T, r *harness.Program, before int) {
	t.Helper()
	r.DumpTo("/dev/null")
	if n := len(r.Tree()); n != before {
		t.Errorf("%d processes in the tree after a whole checkpoint, not %d", n, before)
	}
	image := r.Dump()
	r.Alive()
	r.Kill()
	r.Restore(image)
	r.Pass(true)
}

func timeOf(f func()) time.Duration {
	from := time.Now()
	f()
	return time.Since(from)
}

// TestInterrupted ends `ckptfs dump` and `ckptfs restore` by ctrl-C.
func TestInterrupted(t *testing.T) {
	r := harness.Start(t, "ram", "256")
	image := r.Dump()
	c := exec.Command(harness.Binary(), "dump", itoa(r.PID), "-o", harness.TempDir(t)+"/image")
	harness.RunSignalled(t, c, 30*time.Millisecond, unix.SIGINT)
	r.Alive()
	if len(r.Tree()) != 1 {
		t.Errorf("the tree is %v after an interrupted dump", r.Tree())
	}
	r.Kill()
	r.Again()
	for _, after := range []time.Duration{5, 30, 80} {
		c = exec.Command(harness.Binary(), "restore", image)
		harness.RunSignalled(t, c, after*time.Millisecond, unix.SIGKILL)
		if c.ProcessState.Success() {
			r.Kill() // it was faster
		}
		harness.Eventually(t, "no process of a killed restore", func() bool { return !harness.Exists(r.PID) })
	}
	r.Restore(image)
	r.Pass(true)
}

// TestKilledRestore kills `ckptfs restore` at random moments: either the whole tree runs then, or nothing
// is left, no half of it and no stub.
func TestKilledRestore(t *testing.T) {
	for _, v := range []program{{name: "tree", prog: "tree"}, {name: "threads", prog: "threads", args: []string{"8"}}, {name: "TCP connections", prog: "inet", args: []string{"connected"}}} {
		t.Run(v.name, func(t *testing.T) {
			r := harness.Start(t, v.prog, v.args...)
			members := len(r.Tree())
			image := r.Dump()
			r.Kill()
			full := timeOf(func() { r.Restore(image) })
			r.Kill()
			rng := rand.New(rand.NewPCG(11, 11))
			whole := 0
			for range soak(t, 40) {
				r.Again()
				harness.RunKilled(t, exec.Command(harness.Binary(), "restore", image), time.Duration(rng.Int64N(int64(full))))
				time.Sleep(20 * time.Millisecond) // what was traced by it is being killed
				lives := func() bool { return !strings.ContainsRune("\x00ZX", rune(harness.State(r.PID))) }
				harness.Eventually(t, "all or nothing", func() bool {
					return (!harness.Exists(r.PID) || lives() && len(r.Tree()) == members) && harness.Stubs() == 0
				})
				if lives() {
					r.Alive()
					r.Kill()
					whole++
				}
			}
			t.Logf("%d of the killed restores had restored everything", whole)
			r.Restore(image)
			r.Pass(true)
		})
	}
}
