package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// goneSmall has a deleted file with 3 MiB on a small filesystem.
const goneSmall = `import os, time, sys
f = open(sys.argv[1], "w+b", buffering=0)
for i in range(3): f.write(bytes([65 + i]) * (1 << 20))
os.unlink(sys.argv[1]); f.seek(1 << 20)
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
open("result.tmp", "w").write("ok " + f.read(2).decode() + str(os.fstat(f.fileno()).st_nlink)); os.rename("result.tmp", "result")
`

// TestGoneNoRoom restores a deleted file where there is no room for it: nothing is left then, and it works when
// there is again, even without its folder.
func TestGoneNoRoom(t *testing.T) {
	dir := harness.TempDir(t)
	small := filepath.Join(dir, "small")
	sub := filepath.Join(small, "sub")
	if err := os.MkdirAll(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", goneSmall, filepath.Join(sub, "file"))
	r.WaitReady()
	image := filepath.Join(harness.TempDir(t), "image")
	r.DumpTo(image, "--kill")
	r.WaitGone()
	refuses := func(what string, words ...string) {
		t.Helper()
		got := harness.Run(t, harness.Binary(), "restore", image)
		if got.Code == 0 {
			t.Errorf("%s: restored", what)
		}
		harness.Say(t, what, got.Stderr, words...)
		if harness.Exists(r.PID) {
			t.Fatalf("%s: pid %d exists afterwards", what, r.PID)
		}
	}
	file := filepath.Join(sub, "file")

	filler := filepath.Join(small, "filler")
	write(t, filler, make([]byte, 7<<20))
	refuses("full", file, "no space left")
	if entries, _ := os.ReadDir(sub); len(entries) > 0 {
		t.Errorf("a restore that failed left %v", entries)
	}
	os.Remove(filler)

	if err := unix.Mount("", small, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refuses("read-only", file, "read-only")
	if err := unix.Mount("", small, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}

	// Its folder is gone, and something else stands in its place: the file never had to be reached by it again.
	os.Remove(sub)
	write(t, sub, []byte("other"))
	r.Restore(image)
	if got := string(read(t, sub)); got != "other" {
		t.Errorf("what stands in the place of the folder holds %q", got)
	}
	write(t, filepath.Join(dir, "go"), nil)
	if got, want := r.Finish(), "BB0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
