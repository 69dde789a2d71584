// Package harness runs the built ckptfs binary on real programs, for the end-to-end tests and
// the benchmarks.
//
// How it keeps the machine clean: every program is started with a variable in its environment
// that names its test, and a checkpoint keeps the environment. So whatever came of a program,
// restored or not, is found by a look through /proc, and only that is killed. The test
// process is a child subreaper: what it started, and what that left behind, ends with it, and
// its exit status can be asked for.
package harness

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that marks the programs of this run.
const marker = "CKPTFS_TEST"

// env is what one test run shares; it is set up by Main before any test runs.
type env struct {
	base   string // folder of this run, everything lies below it
	source string // the folder "test" of the source tree
	binary string // the built ckptfs
}

var run env

// Main builds the binary (or takes the one that CKPTFS_BINARY names), runs the tests and then looks for what they left behind: processes
// and mounts. It returns the exit code for os.Exit.
func Main(m *testing.M) int {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		return 2
	}
	back, err := hugePages(32)
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		return 2
	}
	code := m.Run()
	if err := back(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: clean up:", err)
		code = 1
	}
	if left := leftovers(); len(left) > 0 {
		for _, l := range left {
			fmt.Fprintln(os.Stderr, "FAIL: left behind:", l)
		}
		code = 1
	}
	if err := os.RemoveAll(run.base); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: clean up:", err)
		code = 1
	}
	return code
}

func setUp() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the end-to-end tests need root: they trace, mount and restore processes")
	}
	_, file, _, _ := runtime.Caller(0)
	run.source = filepath.Dir(filepath.Dir(file))
	base, err := os.MkdirTemp("", "ckptfs-test-")
	if err != nil {
		return err
	}
	// Programs that are not root live below it.
	if err := os.Chmod(base, 0o755); err != nil {
		return err
	}
	run.base = base
	run.binary = filepath.Join(base, "bin", "ckptfs")
	if err := os.Mkdir(filepath.Dir(run.binary), 0o755); err != nil {
		return err
	}
	if err := buildBinary(); err != nil {
		return err
	}
	// What our caller left open is no part of a test program.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("child subreaper: %w", err)
	}
	go reap()
	return nil
}

// hugePages makes sure that n hugetlb pages are there, and returns what sets it back.
func hugePages(n int) (back func() error, err error) {
	const file = "/proc/sys/vm/nr_hugepages"
	had, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	back = func() error { return os.WriteFile(file, had, 0) }
	have, err := strconv.Atoi(strings.TrimSpace(string(had)))
	if err != nil || have >= n {
		return back, err
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(n)), 0); err != nil {
		return nil, fmt.Errorf("make %d huge pages for the tests: %w", n, err)
	}
	return back, nil
}

// buildBinary builds ckptfs, or takes the one that CKPTFS_BINARY names.
func buildBinary() error {
	// Without -buildvcs=false git refuses a source tree that belongs to somebody else than root.
	c := exec.Command("go", "build", "-buildvcs=false", "-o", run.binary, filepath.Join(run.source, "..", "cmd", "ckptfs"))
	if given := os.Getenv("CKPTFS_BINARY"); given != "" {
		c = exec.Command("cp", given, run.binary)
	}
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", c.Args, err, out)
	}
	return nil
}

// leftovers ends and lists what outlived its test.
func leftovers() []string {
	var left []string
	for _, p := range marked("") {
		left = append(left, fmt.Sprintf("process %d (%s)", p, commandOf(p)))
		unix.Kill(p, unix.SIGKILL)
	}
	for _, p := range running(run.binary) {
		left = append(left, fmt.Sprintf("process %d of ckptfs (%s)", p, commandOf(p)))
		unix.Kill(p, unix.SIGKILL)
	}
	for _, m := range mountsBelow(run.base) {
		left = append(left, "mount "+m)
		unix.Unmount(m, unix.MNT_DETACH)
	}
	return left
}

// Binary returns the path of the built ckptfs.
func Binary() string { return run.binary }

// Base returns the folder of this run.
func Base() string { return run.base }

// TempDir is t.TempDir, but below Base and open to programs that are not root.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(run.base, "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() || os.Getenv("CKPTFS_KEEP") == "" {
			os.RemoveAll(dir)
		}
	})
	return dir
}
