package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// TestDescriptorNumbers restores programs with many descriptors, or with high ones, where the
// limit of open files allows what the program has and nothing above.
func TestDescriptorNumbers(t *testing.T) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	hard := min(int(l.Max), 20000)
	for _, c := range []struct {
		mode  string
		count int
		limit int // of the restore
	}{
		{"many", 10000, 10000},
		{"many", 700, 700},
		{"all", 700, 701},
		{"all", 700, 700},  // not even a number for the channel
		{"all", 254, 254},  // one message
		{"all", 40, 40},    // fewer than what a message carries
		{"high", 700, 700}, // one descriptor
		{"high", hard, hard},
		{"same", hard, hard}, // all of them
		{"lowered", 700, 700},
		{"thread", 700, 700},
		{"thread", 5000, 5000},
		{"fork", 700, 700},
		{"fork", 5000, 5000}, // together they have more than we may have
	} {
		t.Run(fmt.Sprintf("%s_%d_of_%d", c.mode, c.count, c.limit), func(t *testing.T) {
			r := harness.Start(t, "numbers", c.mode, fmt.Sprint(c.count))
			before := r.Look()
			image := r.Dump()
			r.Kill()
			r.Again()
			harness.Must(t, limited(c.limit, harness.Binary(), "restore", image)...)
			r.Restored()
			r.Same(before, "after a restore")
			r.Pass(true)
		})
	}
}

// TestDescriptorNumbersPlain proves the program.
func TestDescriptorNumbersPlain(t *testing.T) {
	for _, mode := range []string{"many", "all", "high", "lowered", "fork", "same", "thread"} {
		harness.Start(t, "numbers", mode, "700").Pass(false)
	}
}

// TestDescriptorAboveLimit: a number that this machine does not allow is refused by name.
func TestDescriptorAboveLimit(t *testing.T) {
	r := harness.Start(t, "numbers", "lowered", "700")
	image := r.Dump()
	r.Kill()
	r.Again()
	res := harness.Run(t, limited(699, harness.Binary(), "restore", image)...)
	want := fmt.Sprintf("pid %d needs descriptors up to 699, and the hard limit of open files allows only those below 699", r.PID)
	if mayRaise() {
		t.Log("with CAP_SYS_RESOURCE it is raised")
	} else if res.Code != 5 || !strings.Contains(res.Stderr, want) {
		t.Errorf("%v, want %q", res, want)
	}
}

// mayRaise reports whether we have CAP_SYS_RESOURCE, which no hard limit holds.
func mayRaise() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// limited is a command with a hard limit of open files.
func limited(n int, argv ...string) []string {
	return append([]string{"/bin/bash", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, n), "limited"}, argv...)
}
