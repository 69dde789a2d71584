package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestNamedSemaphore: a process that opens a semaphore by its name after the restore shares it with the restored ones.
func TestNamedSemaphore(t *testing.T) {
	name := fmt.Sprint("ckptfs-test-", os.Getpid())
	t.Run("plain", func(t *testing.T) { harness.Start(t, "namedsem", name).Pass(false) })
	r := harness.Start(t, "namedsem", name, "other")
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	other := exec.Command(harness.Fixture(t, "namedsem"), "post", name)
	harness.Background(t, other)
	r.Pass(true)
}
