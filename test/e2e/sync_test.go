package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestSync has a dump wait for the disk only where something would be lost: before the tree is killed,
// if an older image had the name, and if it is asked for.
func TestSync(t *testing.T) {
	r := harness.Start(t, "counter")
	dir := harness.TempDir(t)
	// syncs counts the fsync(2) of a dump, and those after the first kill(2).
	syncs := func(name string, args ...string) (before, after int) {
		t.Helper()
		log := filepath.Join(dir, "strace")
		argv := append([]string{harness.Tool(t, "strace"), "-f", "-qq", "-o", log, "-e", "trace=fsync,kill,pidfd_send_signal",
			harness.Binary(), "dump", itoa(r.PID), "-o", filepath.Join(dir, name)}, args...)
		harness.Must(t, argv...)
		killed := false
		for line := range strings.Lines(string(read(t, log))) {
			switch {
			case strings.Contains(line, "SIGKILL"):
				killed = true
			case strings.Contains(line, "fsync(") && killed:
				after++
			case strings.Contains(line, "fsync("):
				before++
			}
		}
		return before, after
	}
	if n, m := syncs("new"); n+m != 0 {
		t.Errorf("a dump that leaves the tree alone: %d fsync", n+m)
	}
	if n, m := syncs("new"); n+m == 0 {
		t.Error("an older image is replaced without fsync")
	}
	if n, m := syncs("asked", "--sync"); n+m == 0 {
		t.Error("--sync: no fsync")
	}
	if n, _ := syncs("last", "--kill"); n < 2 {
		t.Errorf("%d fsync of file and folder before the tree was killed", n)
	}
}
