package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestAIOLimit: the machine allows fewer requests than the contexts of the image are for.
func TestAIOLimit(t *testing.T) {
	const limit = "/proc/sys/fs/aio-max-nr"
	was := read(t, limit)
	r := harness.Start(t, "aio")
	image := r.Dump("--kill")
	r.WaitGone()
	t.Cleanup(func() { _ = os.WriteFile(limit, was, 0o644) })
	if err := os.WriteFile(limit, []byte("1000"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := harness.Run(t, harness.Binary(), "restore", image)
	harness.Say(t, "restore", got.Stderr, "its AIO contexts are for 1251 requests", "of the 1000 that this machine allows", "sysctl fs.aio-max-nr=")
	if got.Code == 0 {
		t.Error("restored all the same")
	}
	if err := os.WriteFile(limit, []byte(strings.TrimSpace(string(was))), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Restore(image)
	r.Pass(true)
}
