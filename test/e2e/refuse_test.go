package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// refusals are the things that no checkpoint keeps yet, and words that the sentence about
// them has to hold beside the pid.
var refusals = []struct {
	what  string
	words []string
}{
	{"socket", []string{"fd 3", "netlink raw socket, protocol 12"}},
	{"unixpeer", []string{"fd 3", "connected to pid", "(refuse), which is outside the tree"}},
	{"unixwaiting", []string{"fd 3", "a connection waits to be accepted by it that data was sent on, and an out-of-band byte waits in it"}},
	{"unixwaitingfile", []string{"fd 3", "a connection waits to be accepted by it that data was sent on, and files are under way in it"}},
	{"clonevm", []string{"CLONE_VM"}},
	{"threadchild", []string{"thread", "(own descriptor table)", "shares them"}},
	{"threadring", []string{"thread", "io_uring", "no thread with file descriptors of its own"}},
	{"threadlease", []string{"thread", "lease", "a thread with file descriptors of its own has it"}},
	{"inotify", []string{"fd 3", "inotify", "wait to be read"}},
	{"cwdxattr", []string{"(working directory)", "trusted.key cannot be carried"}},
	{"aiopoll", []string{"(AIO context)", "1 request(s) of io_submit(2) are in flight and did not end", "io_cancel(2)"}},
	{"aiorest", []string{"(AIO context)", "maps the ring of a context of another process"}},
	{"aiopart", []string{"(AIO context)", "its ring has", "and 4096 bytes of it are mapped"}},
	{"io_uring", []string{"fd 3", "io_uring", "requests in flight (1)"}},
	{"uringpersonality", []string{"fd 3", "io_uring", "personalities are registered"}},
	{"uringrestricted", []string{"fd 3", "io_uring", "it is restricted"}},
	{"uringregistered", []string{"io_uring", "a thread has registered the descriptor"}},
	{"uringbuffers", []string{"fd 3", "io_uring", "buffers are provided to it"}},
	{"uringnommap", []string{"fd 3", "io_uring", "its memory is the program's own (IORING_SETUP_NO_MMAP)"}},
	{"uringwillrestrict", []string{"fd 3", "io_uring", "restrictions are registered with it"}},
	{"uringworkers", []string{"fd 3", "io_uring", "the number of its workers is limited"}},
	{"uringregion", []string{"fd 3", "io_uring", "a memory region is registered with it"}},
	{"uringnapi", []string{"fd 3", "io_uring", "it polls network cards"}},
	{"uringflags", []string{"fd 3", "io_uring", "it has status flags 02002, which this version does not know"}},
	{"tcpwaiting", []string{"fd 4", "a connection waits to be accepted by it from 127.0.0.1:", "and urgent data waits in it", "where it waits to be accepted"}},
	{"tcpdeferred", []string{"fd 4", "it is connected to 127.0.0.1:", "when data comes (TCP_DEFER_ACCEPT)"}},
	{"tcpleft", []string{"fd 3", "a connection waits to be accepted by it from 127.0.0.1:", "which is outside the tree or has ended"}},
	{"tcpurgent", []string{"fd 4", "urgent data waits in it"}},
	{"tcperror", []string{"fd 4", "an error waits to be reported by it (SO_ERROR)"}},
	{"tcpconnecting", []string{"fd 5", "it is still being connected"}},
	{"pidfd", []string{"fd 3", "pidfd", "outside the tree"}},
	{"dnotify", []string{"fd 3", "F_NOTIFY"}},
	{"brokenlease", []string{"fd 3", "lease is being broken"}},
	{"gonelease", []string{"fd 3", "lease (F_SETLEASE) on a file that has no name"}},
	{"mappedlease", []string{"fd 3", "lease for writing", "also mapped"}},
	{"procfile", []string{"fd 3", "/stat", "outside the tree"}},
	{"fanotify", []string{"fd 3", "it decides about the accesses of others (FAN_OPEN_PERM …), who would wait while the tree stands still"}},
	{"fanotifyevents", []string{"fd 3", "bytes of fanotify events wait to be read"}},
	{"userfaultfd", []string{"fd 3", "a userfaultfd has memory registered with it"}},
	{"perf", []string{"fd 3", "performance counters are not kept: nobody can set what they have counted"}},
	{"bpf", []string{"fd 3", "bpf-map", "BPF programs, maps and links are not kept"}},
	{"mqnotify", []string{"fd 3", "has registered with the queue (mq_notify)", "SIGEV_THREAD"}},
	{"hiddenlink", []string{"mapped file", "1 name", "/dev/shm"}},
	{"gonewithothers", []string{"shared memory", "outside the tree"}},
}

// TestRefused asks explain and takes a checkpoint, by the command and through the mount. All
// name the same thing; the program does not notice.
func TestRefused(t *testing.T) {
	m := harness.NewMount(t)
	for _, c := range refusals {
		t.Run(c.what, func(t *testing.T) {
			r := harness.Start(t, "refuse", c.what)
			before := r.Look()
			words := append([]string{"refused: pid " + itoa(r.PID)}, c.words...)

			explain := harness.Run(t, harness.Binary(), "explain", itoa(r.PID))
			if explain.Code != 1 {
				t.Errorf("explain of something refused: %v", explain)
			}
			harness.Say(t, "explain", explain.Stdout, words...)
			remedies(t, explain.Stdout)
			if file := string(read(t, m.Of(r, "explain"))); file != explain.Stdout {
				t.Errorf("the file explain says %q, the command %q", file, explain.Stdout)
			}

			image := filepath.Join(harness.TempDir(t), "image")
			dump := fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", image}, words...)
			for line := range strings.Lines(explain.Stdout) {
				if !strings.Contains(dump.Stderr, strings.TrimSpace(line)) {
					t.Errorf("explain says %q, dump does not: %q", line, dump.Stderr)
				}
			}
			if entries, _ := os.ReadDir(filepath.Dir(image)); len(entries) > 0 {
				t.Errorf("a refused dump left %v", entries)
			}
			fails(t, []string{"cat", m.Image(r)}, "not supported")
			if names := m.Images(); len(names) > 0 {
				t.Errorf("a refused checkpoint is in images/: %q", names)
			}
			r.Same(before, "after refused checkpoints")
			r.Alive()
			r.Pass(false)
		})
	}
}

// remedies checks that every refusal tells what to do: something stands behind the last "; ".
func remedies(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if _, remedy, ok := strings.Cut(line, "; "); !ok || len(strings.TrimSpace(remedy)) < 5 {
			t.Errorf("no remedy in %q", line)
		}
	}
}

// TestBlockedAccept has a thread wait in accept while checkpoints are taken, and after a restore.
func TestBlockedAccept(t *testing.T) {
	r := harness.Start(t, "accept")
	image := ""
	for range 3 {
		image = r.Dump()
	}
	r.Pass(false)
	r.Restore(image)
	r.Pass(true)
}

// TestPolicyPart refuses memory with a NUMA policy that only another mapping tells the borders of.
func TestPolicyPart(t *testing.T) {
	r := harness.Start(t, "refuse", "numapart")
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "pid "+itoa(r.PID), "(memory policy)", "NUMA policy in one part and not in another", "mbind(2)")
	r.Pass(false)
}

// TestAdoptedSharer refuses a process that shares its parent's descriptors and cannot be made by that.
func TestAdoptedSharer(t *testing.T) {
	r := harness.Start(t, "refuse", "adoptedsharer")
	words := []string{"pid " + itoa(r.Tree()[1]), "(shared descriptor table (CLONE_FILES))", "its parent, pid " + itoa(r.PID), "where that never was"}
	harness.Say(t, "explain", harness.Run(t, harness.Binary(), "explain", itoa(r.PID)).Stdout, words...)
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, words...)
	r.Pass(false)
}

// TestTraced refuses a tree in which somebody traces somebody.
func TestTraced(t *testing.T) {
	r := harness.Start(t, "refuse", "traced")
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "traced", "pid "+itoa(r.Tree()[1]), itoa(r.PID))
	r.Pass(false)
}

// TestVfork gives up on a task that waits in vfork, within the time it was given, with
// everything running again.
func TestVfork(t *testing.T) {
	r := harness.Start(t, "refuse", "vfork")
	got := fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null", "--timeout", "500ms"}, "vfork", itoa(r.PID))
	if got.Code != 1 && got.Code != 7 {
		t.Errorf("the exit code is that of a refusal or of a freeze that took too long: %v", got)
	}
	r.Pass(false)
}

// TestShortVforks takes checkpoints of a program that is in vfork most of the time, but never
// for long, as make and gcc are: they succeed.
func TestShortVforks(t *testing.T) {
	r := harness.Start(t, "vforks")
	for range 5 {
		r.Dump()
		r.Alive()
	}
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	r.Pass(true)
}

// TestExplainAgrees has explain say nothing of programs that a checkpoint then takes.
func TestExplainAgrees(t *testing.T) {
	for _, name := range []string{"files", "signals", "mem_shared", "mem_guards", "mem_droppable", "mem_hugeshared", "gone", "gone_exe", "tree"} {
		t.Run(name, func(t *testing.T) {
			r := harness.Start(t, name)
			before := r.Look()
			if got := harness.Must(t, harness.Binary(), "explain", itoa(r.PID)); got.Stdout != "" {
				t.Errorf("explain says %q", got.Stdout)
			}
			r.Same(before, "after explain")
			r.Dump()
			r.Pass(false)
		})
	}
}

// TestBadTargets asks for checkpoints of what cannot be one.
func TestBadTargets(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "counter")
	r.Kill() // a pid that is free now
	dump := func(pid int, words ...string) {
		t.Helper()
		got := fails(t, []string{harness.Binary(), "dump", itoa(pid), "-o", "/dev/null"}, append(words, itoa(pid))...)
		if got.Code != 4 {
			t.Errorf("the exit code of a pid that cannot be a target is 4: %v", got)
		}
	}
	dump(r.PID, "no such process")
	dump(1, "init")
	dump(kernelThread(t), "kernel thread")
	fails(t, []string{"cat", m.Image(r)}, "no such file")
	fails(t, []string{"cat", filepath.Join(m.Dir, "ckpt", itoa(m.Daemon()), "image")})
	fails(t, []string{"cat", filepath.Join(m.Dir, "ckpt", "1", "image")})
	if names := m.Images(); len(names) > 0 {
		t.Errorf("images/ holds %q", names)
	}
	for _, args := range [][]string{{"dump"}, {"dump", "x"}, {"dump", "-5"}, {"restore"}, {"nonsense"}, {"dump", "--no-such-flag", "1"}} {
		if got := harness.Run(t, append([]string{harness.Binary()}, args...)...); got.Code != 2 {
			t.Errorf("the exit code of a wrong command line is 2: %v", got)
		}
	}
}

// kernelThread finds one: a child of kthreadd.
func kernelThread(t *testing.T) int {
	t.Helper()
	if b, err := os.ReadFile("/proc/2/comm"); err == nil && string(b) == "kthreadd\n" {
		return 2
	}
	t.Log("kernel threads are not visible in this pid namespace; init takes their place")
	return 1
}

// TestHelp prints help for the command and each subcommand.
func TestHelp(t *testing.T) {
	top := harness.Must(t, harness.Binary(), "--help")
	for _, sub := range []string{"mount", "umount", "dump", "restore", "show", "check", "explain", "demo"} {
		harness.Say(t, "--help", top.Stdout, sub)
		got := harness.Must(t, harness.Binary(), sub, "--help")
		harness.Say(t, sub+" --help", got.Stdout, "ckptfs "+sub)
	}
}

// TestCheck reports what the kernel offers.
func TestCheck(t *testing.T) {
	got := harness.Must(t, harness.Binary(), "check")
	harness.Say(t, "check", got.Stdout, "ptrace", "fuse")
	harness.Must(t, harness.Binary(), "check", "--json")
}

// TestExplainOwnShell asks a shell about itself: ckptfs leaves itself out, says so and how a
// checkpoint is taken, and tells the rest.
func TestExplainOwnShell(t *testing.T) {
	dir := harness.TempDir(t)
	script := `exec 9</dev/kmsg
"$0" explain $$ >text; echo $? >code
"$0" explain --json $$ >json
"$0" dump $$ -o image 2>dump; echo $? >>code
exec 9<&-
setsid -f "$0" dump $$ -o image 2>dump2
for i in $(seq 600); do [ -s image ] && break; sleep 0.1; done
"$0" show image >shown; echo $? >>code`
	r := harness.RunIn(t, dir, nil, "setsid", "bash", "-c", script, harness.Binary())
	if r.Code != 0 {
		t.Fatal(r)
	}
	file := func(name string) string { return string(read(t, filepath.Join(dir, name))) }
	harness.Say(t, "explain", file("text"), "(ckptfs itself)", "it runs in the tree and is left out of this list", "setsid -f ckptfs dump", "fd 9")
	harness.Say(t, "dump", file("dump"), "the tree contains ckptfs itself", "setsid -f ckptfs dump")
	var found []struct{ Kind, What, Remedy string }
	if err := json.Unmarshal([]byte(file("json")), &found); err != nil || len(found) < 2 || found[0].Kind == "" {
		t.Errorf("JSON: %v, %+v", err, found)
	}
	if got := strings.Fields(file("code")); len(got) != 3 || got[0] != "1" || got[1] == "0" || got[2] != "0" {
		t.Errorf("exit codes %q; the detached dump said %q", got, file("dump2"))
	}
}
