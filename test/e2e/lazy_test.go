package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

var serverPID = regexp.MustCompile(`memory come in the background, from process (\d+)`)

// restoreLazily restores with --lazy and returns the pid of the page server, 0 if there was nothing to be lazy about.
func restoreLazily(t *testing.T, r *harness.Program, image string, args ...string) int {
	t.Helper()
	said := harness.Must(t, append([]string{harness.Binary(), "restore", "--lazy", image}, args...)...)
	m := serverPID.FindStringSubmatch(said.Stderr)
	if m == nil {
		return 0
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// served waits until a page server has ended, and fails if it has left a log.
func served(t *testing.T, server int) {
	t.Helper()
	if server == 0 {
		return
	}
	harness.Eventually(t, "the page server ends", func() bool { return !harness.Exists(server) })
	if log := pagesLog(t, server); log != "" {
		t.Errorf("the page server says: %s", log)
	}
}

// pagesLog returns the log of a page server.
func pagesLog(t *testing.T, server int) string {
	t.Helper()
	path := fmt.Sprintf("/run/ckptfs/lazy/%d.log", server)
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return string(b)
}

// goAhead lets a program go on from where it waits as soon as it is restored.
func goAhead(t *testing.T, r *harness.Program) {
	t.Helper()
	r.Again()
	if err := os.WriteFile(filepath.Join(r.Dir, "go"), []byte("restored\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dumped starts a program of the given size that compares its memory when it is told to, and ends it with a
// checkpoint.
func dumped(t *testing.T, mib string) (r *harness.Program, image string) {
	t.Helper()
	r = harness.Start(t, "lazymem", mib, "0", "1")
	image = r.Dump("--kill")
	r.WaitGone()
	r.Again()
	return r, image
}

// TestLazyPrograms brings every program back lazily: once all memory has come nothing is different
// from before, and one that goes on while it comes passes, too.
func TestLazyPrograms(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		args := p.args
		if p.prog == "scribble" { // the kernel tells nobody of guard regions in memory that has not come, see package lazy
			args = []string{"1", "noguards"}
		}
		r := harness.Start(t, p.prog, args...)
		before := look(p, r)
		image := r.Dump("--kill")
		r.WaitGone()
		r.Again()
		served(t, restoreLazily(t, r, image))
		r.Restored()
		if p.still {
			r.Same(before, "after a lazy restore")
		}
		r.Alive()
		image = r.Dump("--kill")
		r.WaitGone()
		r.Again()
		server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
		r.Restored()
		r.Pass(true)
		served(t, server)
	})
}

// TestLazyMemory lets programs use their memory in every way while it comes.
func TestLazyMemory(t *testing.T) {
	seeds := 4
	if os.Getenv("CKPTFS_SOAK") != "" {
		seeds = 200
	}
	for seed := range seeds {
		t.Run(itoa(seed), func(t *testing.T) {
			r := harness.Start(t, "lazymem", "60", "2000", itoa(seed))
			image := r.Dump("--kill")
			r.WaitGone()
			goAhead(t, r)
			server := restoreLazily(t, r, image, "--lazy-rate", []string{"0", "4MiB", "20MiB", "60MiB"}[seed%4])
			r.Finish()
			served(t, server)
		})
	}
}

// TestLazyLeftAlone lets a large program do nothing while its memory comes, and then look at it.
func TestLazyLeftAlone(t *testing.T) {
	r := harness.Start(t, "lazymem", "300", "0", "1")
	before := r.Look()
	image := r.Dump("--kill")
	r.WaitGone()
	r.Again()
	server := restoreLazily(t, r, image)
	if server == 0 {
		t.Fatal("nothing is lazy")
	}
	served(t, server)
	r.Same(before, "after a lazy restore")
	r.Pass(true)
}

// TestLazyImageGone removes and renames the image: the page server has it open.
func TestLazyImageGone(t *testing.T) {
	r, image := dumped(t, "60")
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	r.Pass(true)
	served(t, server)
}

// TestLazyPacked restores from what cannot be read at random.
func TestLazyPacked(t *testing.T) {
	r := harness.Start(t, "lazymem", "20", "500", "1")
	image := r.Dump("--kill")
	r.WaitGone()
	for _, line := range []string{"zstd -q < %s > %[1]s.zst && %s restore --lazy %[1]s.zst", "cat %s | %s restore --lazy - --out /dev/null"} {
		goAhead(t, r)
		if got := harness.Shell(t, fmt.Sprintf(line, image, harness.Binary())); got.Code != 0 {
			t.Fatal(got)
		}
		r.Finish()
	}
}

// TestLazyCheckpoint takes a checkpoint of a program that is still lazy. It waits for the memory, and holds all of it.
func TestLazyCheckpoint(t *testing.T) {
	r, image := dumped(t, "60")
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	if said := harness.Must(t, harness.Binary(), "explain", itoa(r.PID)); said.Stdout+said.Stderr != "" {
		t.Errorf("explain of a lazy program: %v", said)
	}
	if !harness.Exists(server) {
		t.Fatal("the program is not lazy any more")
	}
	again := r.Dump("--kill")
	r.WaitGone()
	served(t, server)
	if a, b := size(t, image), size(t, again); b < a-a/20 {
		t.Errorf("the image of the program has %d bytes, that of the lazy one %d", a, b)
	}
	r.Restore(again)
	r.Pass(true)
}

// TestLazyExec ends lazy programs early: one that executes another one, and one that is killed.
func TestLazyExec(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Python(t), "-c", `
import os, time
b = bytearray(os.urandom(64 << 20))
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
os.execvp("sh", ["sh", "-c", "echo ok > result.tmp; mv result.tmp result"])`)
	r.WaitReady()
	image := r.Dump("--kill")
	r.WaitGone()
	goAhead(t, r)
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	r.Finish()
	served(t, server)
	r.Again()
	server = restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	if err := unix.Kill(r.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.WaitGone()
	served(t, server)
}

// TestLazySpoiltCheckpoint takes a checkpoint of a program part of whose memory could not be had: it is refused rather
// than made without that.
func TestLazySpoiltCheckpoint(t *testing.T) {
	r, image := dumped(t, "60")
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	if err := os.Truncate(image, size(t, image)*3/4); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(harness.TempDir(t), "image")
	got := harness.Run(t, harness.Binary(), "dump", itoa(r.PID), "-o", again)
	harness.Say(t, "the log", pagesLog(t, server), "cannot be had")
	if got.Code == 0 {
		t.Errorf("there is an image: %v", got)
	}
	t.Logf("it says: %s", got.Stderr)
	r.Alive()
}

// TestLazyHuge brings back huge pages as huge pages.
func TestLazyHuge(t *testing.T) {
	huge := func(pid int) int {
		n := 0
		for line := range strings.Lines(string(read(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid)))) {
			if _, err := fmt.Sscanf(line, "AnonHugePages: %d kB", &n); err == nil {
				break
			}
		}
		return n
	}
	r := harness.Start(t, "ram", "128")
	before := huge(r.PID)
	if before < 64<<10 {
		t.Fatalf("the kernel gives the program %d KiB of huge pages", before)
	}
	image := r.Dump("--kill")
	r.WaitGone()
	r.Again()
	served(t, restoreLazily(t, r, image))
	if after := huge(r.PID); after < before*3/4 {
		t.Errorf("it had %d KiB of huge pages, now %d", before, after)
	}
	r.Pass(true)
}

// TestLazyNamespace forks a lazy program into another pid namespace, where ids mean something else, and kills the page
// server: the child ends too, or has read what is its data.
func TestLazyNamespace(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed=", killed), func(t *testing.T) {
			dir := harness.TempDir(t)
			r := harness.StartCommand(t, dir, harness.Python(t), "-c", `
import ctypes, hashlib, os, time
b = os.urandom(48 << 20)
want = hashlib.sha256(b).digest()
def say(name, text):
    with open("tmp", "w") as f: f.write(text)
    os.rename("tmp", name)
say("ready", "")
while not os.path.exists("go"): time.sleep(0.01)
assert ctypes.CDLL(None).unshare(0x20000000) == 0
pid = os.fork()
if pid == 0:
    say("inner", "")
    if hashlib.sha256(b).digest() != want:
        say("result", "fail: the child read something else")
        os._exit(1)
    os._exit(0)
if os.waitpid(pid, 0)[1] == 0: say("result", "ok")`)
			r.WaitReady()
			image := r.Dump("--kill")
			r.WaitGone()
			goAhead(t, r)
			server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
			if !killed {
				r.Finish()
				served(t, server)
				return
			}
			harness.Eventually(t, "there is a child", func() bool {
				_, err := os.Stat(filepath.Join(dir, "inner"))
				return err == nil
			})
			signal(t, server, "KILL")
			endsWithout(t, r, "fail")
			harness.Say(t, "the log", pagesLog(t, server), fmt.Sprintf("pid %d is killed too", r.PID))
		})
	}
}
