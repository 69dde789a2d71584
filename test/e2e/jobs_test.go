package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// noise makes a file of n bytes that compress to about half.
func noise(t *testing.T, path string, n int) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		for k, v := 0, rng.Uint32(); k < 4 && i+k < n; k++ {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	write(t, path, b)
	return b
}

// TestRsyncTransfer takes an rsync with its sender and receiver away in mid-transfer, twice.
func TestRsyncTransfer(t *testing.T) {
	dir := harness.TempDir(t)
	data := noise(t, filepath.Join(dir, "from"), 8<<20)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", harness.Tool(t, "rsync")+" --inplace --whole-file --bwlimit=4M from to && echo ok > result.tmp && mv result.tmp result")
	got := func() int64 {
		st, err := os.Stat(filepath.Join(dir, "to"))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	for _, at := range []int64{1 << 20, 4 << 20} {
		harness.Eventually(t, "in mid-transfer", func() bool { return got() >= at })
		image := r.Dump("--kill")
		r.WaitGone()
		if got() >= int64(len(data)) {
			t.Fatal("the transfer was over before the checkpoint")
		}
		r.Restore(image)
	}
	r.Finish()
	if !bytes.Equal(read(t, filepath.Join(dir, "to")), data) {
		t.Error("the file that was copied differs")
	}
}

// TestXz takes a compression with two threads away in the middle.
func TestXz(t *testing.T) {
	dir := harness.TempDir(t)
	data := noise(t, filepath.Join(dir, "from"), 24<<20)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", harness.Tool(t, "xz")+" -T2 --block-size=2MiB -6 < from > to.xz && echo ok > result.tmp && mv result.tmp result")
	harness.Eventually(t, "some output", func() bool { st, err := os.Stat(filepath.Join(dir, "to.xz")); return err == nil && st.Size() > 0 })
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	r.Finish()
	if got := harness.Must(t, harness.Tool(t, "xz"), "-dc", filepath.Join(dir, "to.xz")).Stdout; got != string(data) {
		t.Error("what was compressed differs")
	}
}
