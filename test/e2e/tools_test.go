package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

func itoa(n int) string { return strconv.Itoa(n) }

func signal(t *testing.T, pid int, name string) {
	t.Helper()
	if err := unix.Kill(pid, unix.SignalNum("SIG"+name)); err != nil {
		t.Fatalf("kill -%s %d: %v", name, pid, err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// fill replaces what stands in braces in a command line.
func fill(line string, with map[string]string) string {
	for k, v := range with {
		line = strings.ReplaceAll(line, "{"+k+"}", v)
	}
	return line
}

// fails runs a command that must fail, with a sentence that holds the words.
func fails(t *testing.T, argv []string, words ...string) harness.Result {
	t.Helper()
	r := harness.Run(t, argv...)
	if r.Code == 0 {
		t.Errorf("succeeded: %v", r)
	}
	harness.Say(t, strings.Join(argv, " "), r.Stderr, words...)
	return r
}
