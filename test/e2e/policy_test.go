package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestPolicies chooses a policy at the checkpoint and another one at the restore: the image keeps the
// first, the command line of the restore counts more.
func TestPolicies(t *testing.T) {
	dir := harness.TempDir(t)
	file := filepath.Join(dir, "data")
	write(t, file, []byte("0123456789"))
	r := harness.StartCommand(t, dir, harness.Tool(t, "sh"), "-c", "exec 5<data; exec sleep 1000")
	harness.Eventually(t, "asleep", func() bool { return strings.TrimSpace(string(read(t, fmt.Sprintf("/proc/%d/comm", r.PID)))) == "sleep" })
	fails(t, []string{harness.Binary(), "dump", "--policy", "files=lax", itoa(r.PID)}, `policy files cannot be "lax", but changed, any, strict`)
	fails(t, []string{harness.Binary(), "dump", "--policy", "nothing=x", itoa(r.PID)}, `there is no policy "nothing"`)
	fails(t, []string{harness.Binary(), "explain", "--policy", "nothing", itoa(r.PID)}, "not of the form KEY=VALUE")

	image := r.Dump("--kill", "--policy", "files=strict")
	r.WaitGone()
	harness.Say(t, "show", harness.Must(t, harness.Binary(), "show", image).Stdout, "policy", "files=strict")
	harness.Say(t, "help", harness.Must(t, harness.Binary(), "help", "policies").Stdout, "strict", "refuses the restore", "(default)")
	write(t, file, []byte("0123456789 and more"))
	fails(t, []string{harness.Binary(), "restore", image}, file, "has grown from 10 to 19 bytes", "--policy files=changed")
	m := harness.NewMount(t)
	if got := harness.Run(t, "cp", image, m.Restore("strict")); got.Code == 0 {
		t.Error("the mount restores it")
	}
	r.Restore(image, "--policy", "files=changed")
	r.Kill()
}
