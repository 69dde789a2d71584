package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

var stepLine = regexp.MustCompile(`^op=(\S+) pid=(\d+) step=(\S+) at=(\S+) took=(\S+)(?: \w+=\d+)*(?: err=".*")?$`)

// steps returns the names of the steps of an operation, in the order in which they ended. What
// runs beside them is left out.
func steps(t *testing.T, text, op string, pid int) (names []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		m := stepLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			t.Errorf("line %q", line)
			continue
		}
		for _, d := range m[4:6] {
			if v, err := time.ParseDuration(d); err != nil || v < 0 {
				t.Errorf("time %q in %q", d, line)
			}
		}
		if m[1] == op && m[2] == fmt.Sprint(pid) && m[3] != "files" && !strings.HasPrefix(m[3], "undo:") {
			names = append(names, m[3])
		}
	}
	return names
}

var (
	dumpSteps    = []string{"look", "stop", "freeze", "snapshot", "capture", "resume", "layout", "stream"}
	restoreSteps = []string{"check", "open", "tree", "memory", "seal", "threads", "locks", "limits", "credentials", "stop", "signals", "scheduling", "verify", "go"}
)

// TestDebugSteps: CKPTFS_DEBUG makes a dump and a restore tell each of their steps.
func TestDebugSteps(t *testing.T) {
	log := filepath.Join(harness.TempDir(t), "steps")
	r := harness.Start(t, "signals")
	r.Dump()
	t.Setenv("CKPTFS_DEBUG", log)
	image := r.Dump()
	if got := steps(t, string(read(t, log)), "dump", r.PID); !slices.Equal(got, dumpSteps) {
		t.Errorf("a dump said %q, want %q", got, dumpSteps)
	}
	for _, what := range []string{" step=files ", " step=undo:detach ", " threads=", " fds=", " vmas=", " bytes="} {
		if !strings.Contains(string(read(t, log)), what) {
			t.Errorf("no%sin %s", what, read(t, log))
		}
	}
	r.Kill()
	os.Remove(log)
	r.Restore(image)
	if got := steps(t, string(read(t, log)), "restore", r.PID); !slices.Equal(got, restoreSteps) {
		t.Errorf("a restore said %q, want %q", got, restoreSteps)
	}
	os.Remove(log)
	res := harness.Run(t, harness.Binary(), "restore", image) // its pid is in use
	if res.Code != 4 || !strings.Contains(string(read(t, log)), `step=check`) || !strings.Contains(string(read(t, log)), `err="pid `) {
		t.Errorf("a restore that fails: %v; it said %s", res, read(t, log))
	}
	t.Setenv("CKPTFS_DEBUG", "1")
	res = harness.Must(t, harness.Binary(), "dump", fmt.Sprint(r.PID), "-o", os.DevNull)
	if got := steps(t, res.Stderr, "dump", r.PID); !slices.Equal(got, dumpSteps) {
		t.Errorf("standard error got %q, want %q", got, dumpSteps)
	}
	t.Setenv("CKPTFS_DEBUG", filepath.Join(log, "not", "there"))
	if res = harness.Run(t, harness.Binary(), "dump", fmt.Sprint(r.PID), "-o", os.DevNull); res.Code == 0 || !strings.Contains(res.Stderr, "CKPTFS_DEBUG") {
		t.Errorf("a log that cannot be: %v", res)
	}
	t.Setenv("CKPTFS_DEBUG", "")
	if res = harness.Must(t, harness.Binary(), "dump", fmt.Sprint(r.PID), "-o", os.DevNull); strings.Contains(res.Stderr, "op=") {
		t.Errorf("off, it says %v", res)
	}
	r.Pass(true)
}

// TestDebugMount: a mount in the background tells them in its log.
func TestDebugMount(t *testing.T) {
	t.Setenv("CKPTFS_DEBUG", "1")
	m := harness.NewMount(t)
	r := harness.Start(t, "signals")
	image := filepath.Join(harness.TempDir(t), "image")
	if res := harness.Shell(t, fmt.Sprintf("cat %s > %s", m.Image(r), image)); res.Code != 0 {
		t.Fatal(res)
	}
	r.Kill()
	r.Again()
	if res := harness.Shell(t, fmt.Sprintf("cp %s %s", image, m.Restore("back"))); res.Code != 0 {
		t.Fatal(res)
	}
	r.Restored()
	for op, want := range map[string][]string{"dump": dumpSteps, "restore": restoreSteps} {
		var got []string
		harness.Eventually(t, "the steps in the log", func() bool {
			var lines strings.Builder
			for line := range strings.Lines(string(read(t, filepath.Join(m.Store, "mount.log")))) {
				if strings.HasPrefix(line, "op=") {
					lines.WriteString(line)
				}
			}
			got = steps(t, lines.String(), op, r.PID)
			return len(got) >= len(want)
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: the log says %q, want %q", op, got, want)
		}
	}
	r.Pass(true)
}
