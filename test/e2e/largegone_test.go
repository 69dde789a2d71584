package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// largeGone has a deleted file with 200 MiB of data and a hole, two descriptions of it, one that reads,
// and checks all of it after the restore.
const largeGone = `import os, time, sys
n, hole = 200, 1 << 32
f = open(sys.argv[1], "w+b", buffering=0); r = open(sys.argv[1], "rb", buffering=0)
block = lambda i: bytes([i % 251]) * (1 << 20)
for i in range(n): f.write(block(i))
f.seek(hole); f.write(b"end"); os.fchmod(f.fileno(), 0o640); os.unlink(sys.argv[1]); r.seek(5 << 20)
blocks = os.fstat(f.fileno()).st_blocks
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
bad = [i for i in range(5, n) if r.read(1 << 20) != block(i)]
f.write(b"!"); r.seek(hole)
st = os.fstat(r.fileno())
says = [str(bad), r.read(9).decode(), oct(st.st_mode), str(st.st_nlink), str(st.st_size == hole + 4), str(st.st_blocks <= blocks + 64), str(os.path.samestat(st, os.fstat(f.fileno())))]
open("result.tmp", "w").write("ok " + " ".join(says)); os.rename("result.tmp", "result")
`

// TestLargeGone: a deleted file of any size is streamed.
func TestLargeGone(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", largeGone, filepath.Join(dir, "file"))
	r.WaitReady()
	image := filepath.Join(harness.TempDir(t), "image")
	r.DumpTo(image) // while it goes on
	os.Remove(image)
	r.DumpTo(image, "--kill")
	r.WaitGone()
	for range 2 {
		r.Restore(image)
		os.Remove(image)
		r.DumpTo(image, "--kill")
		r.WaitGone()
	}
	r.Restore(image)
	write(t, filepath.Join(dir, "go"), nil)
	if got, want := r.Finish(), "[] end! 0o100640 0 True True True"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
