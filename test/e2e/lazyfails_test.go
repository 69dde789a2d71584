package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestLazyKilled kills the page server at any moment: the program ends, or had all it needs. It never
// finds what is not its data.
func TestLazyKilled(t *testing.T) {
	const times = 8
	killed := 0
	for i := range times {
		t.Run(itoa(i), func(t *testing.T) {
			r := harness.Start(t, "lazymem", "60", "1500", itoa(100+i))
			image := r.Dump("--kill")
			r.WaitGone()
			goAhead(t, r)
			server := restoreLazily(t, r, image, "--lazy-rate", "2MiB")
			time.Sleep(time.Duration(i*i) * time.Millisecond)
			signal(t, server, "KILL")
			if !endsWithout(t, r, "fail") {
				return // it had all it needs
			}
			killed++
			harness.Say(t, "the log", pagesLog(t, server), fmt.Sprintf("pid %d is killed too", r.PID), "restore it again")
			goAhead(t, r)
			served(t, restoreLazily(t, r, image))
			r.Finish()
		})
	}
	if killed < times/2 {
		t.Errorf("only %d of %d programs had not all they needed", killed, times)
	}
}

// endsWithout waits for the end of a program and reports whether it left no result. A result that begins with
// bad fails the test.
func endsWithout(t *testing.T, r *harness.Program, bad string) bool {
	t.Helper()
	r.WaitGone()
	b, err := os.ReadFile(filepath.Join(r.Dir, "result"))
	if strings.HasPrefix(string(b), bad) {
		t.Fatalf("the program says: %s", b)
	}
	return err != nil
}

// TestLazyGuardKilled kills the guard of a page server: there is a new one, which does what a guard is for.
func TestLazyGuardKilled(t *testing.T) {
	r, image := dumped(t, "60")
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	guards := func() string { return allChildren(t, server) }
	var first string
	harness.Eventually(t, "there is a guard", func() bool { first = guards(); return first != "" })
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	signal(t, pid, "KILL")
	harness.Eventually(t, "there is a new guard", func() bool { now := guards(); return now != "" && now != first })
	r.Alive()
	signal(t, server, "KILL")
	r.WaitGone()
	harness.Say(t, "the log", pagesLog(t, server), "has been killed; there is a new one", "is killed too")
}

// allChildren lists the children of all threads of a process.
func allChildren(t *testing.T, pid int) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		b, _ := os.ReadFile(f) // "" for a thread that has ended
		all = append(all, strings.Fields(string(b))...)
	}
	return strings.Join(all, " ")
}

// TestLazySourceFails spoils the image under a lazy program: it gets SIGBUS, the log says why, and others
// are not concerned.
func TestLazySourceFails(t *testing.T) {
	for _, tc := range []struct {
		name, says string
		spoil      func(t *testing.T, image string)
	}{
		{"cut", "the image is cut", func(t *testing.T, image string) {
			if err := os.Truncate(image, size(t, image)/2); err != nil {
				t.Fatal(err)
			}
		}},
		{"damaged", "does not have its hash", func(t *testing.T, image string) {
			f, err := os.OpenFile(image, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("something else"), size(t, image)/2); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, other := harness.Start(t, "lazymem", "60", "0", "1"), harness.Start(t, "lazymem", "60", "0", "2")
			image, good := r.Dump("--kill"), other.Dump("--kill")
			r.WaitGone()
			other.WaitGone()
			r.Again()
			other.Again()
			server, second := restoreLazily(t, r, image, "--lazy-rate", "1MiB"), restoreLazily(t, other, good, "--lazy-rate", "1MiB")
			tc.spoil(t, image)
			goAhead(t, r)
			goAhead(t, other)
			if !endsWithout(t, r, "fail") {
				t.Fatal("the program has read all that was spoilt")
			}
			harness.Eventually(t, "the page server ends", func() bool { return !harness.Exists(server) })
			harness.Say(t, "the log", pagesLog(t, server), fmt.Sprintf("pid %d: its memory at 0x", r.PID), tc.says, "SIGBUS")
			other.Finish()
			served(t, second)
		})
	}
}
