package e2e

import (
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestGoneNames: under which names deleted files show after a restore is said.
func TestGoneNames(t *testing.T) {
	for _, c := range []struct {
		prog, arg string
		words     []string
	}{
		{"gone_exe", "replaced", []string{"/copy", "shows as", ".ckptfs-"}},
		{"gone_exe", "linked", []string{"executable was deleted as", "/copy", "/other", "that it maps"}},
		{"gone", "linked", []string{"/replaced", "shows as", "/dev/shm/sem.ckptfs-test"}},
	} {
		t.Run(c.prog+"_"+c.arg, func(t *testing.T) {
			r := harness.Start(t, c.prog, c.arg)
			image := r.Dump()
			r.Kill()
			r.Again()
			got := harness.Must(t, harness.Binary(), "restore", image)
			r.Restored()
			harness.Say(t, "restore", got.Stderr, c.words...)
			r.Pass(true)
		})
	}
}

// TestGoneShow: the image tells of deleted files.
func TestGoneShow(t *testing.T) {
	r := harness.Start(t, "gone")
	got := harness.Must(t, harness.Binary(), "show", r.Dump())
	harness.Say(t, "show", got.Stdout, "deleted file", "/private", "/sparse, 3.0 GiB")
	r.Pass(false)
}
