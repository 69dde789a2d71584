package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// TestOldCheckpointsGo takes checkpoints as a cron job does: the store stays bounded, the log
// says what went, and what was renamed restores.
func TestOldCheckpointsGo(t *testing.T) {
	store := filepath.Join(harness.TempDir(t), "store")
	m := harness.NewMountAt(t, store, "--keep-last", "2", "--keep-within", "0", "--max-size", "1TB")
	r := harness.Start(t, "mem_anon")
	images := filepath.Join(m.Dir, "images")
	harness.Must(t, "cat", m.Image(r))
	first := m.WaitImages(1)[0]
	harness.Must(t, "mv", filepath.Join(images, first), filepath.Join(images, "mine"))
	for range 6 {
		harness.Must(t, "cat", m.Image(r))
	}
	names := m.WaitImages(3)
	log := filepath.Join(store, "mount.log")
	harness.Eventually(t, "space to be freed", func() bool { return strings.Contains(string(read(t, log)), "freed ") })
	harness.Say(t, "the log", string(read(t, log)), "keeping the newest 2 of every process", "removed: not among the newest 2 of mem_anon-"+itoa(r.PID))
	for _, n := range names {
		harness.Must(t, harness.Binary(), "show", "--verify", filepath.Join(images, n, "image"))
		b := read(t, filepath.Join(images, n, "info"))
		if int64(len(b)) != size(t, filepath.Join(images, n, "info")) {
			t.Errorf("info of %s has %d bytes, stat says %d", n, len(b), size(t, filepath.Join(images, n, "info")))
		}
		var info struct {
			Size, Unique int64
			Ratio        float64
			Kept         bool
		}
		if err := json.Unmarshal(b, &info); err != nil || info.Size == 0 || info.Unique == 0 || info.Ratio <= 0 || info.Kept != (n == "mine") {
			t.Errorf("info of %s says %s (%v)", n, b, err)
		}
	}
	r.Kill()
	r.Again()
	harness.Must(t, "cp", filepath.Join(images, "mine", "image"), m.Restore("mine"))
	r.Restored()
	r.Pass(true)
	m.Unmount()
	ckptfs := func(args ...string) harness.Result {
		return harness.Run(t, append([]string{harness.Binary(), args[0], "--store", store}, args[1:]...)...)
	}
	if got := ckptfs("gc", "--keep-last", "1"); got.Code != 0 || !strings.Contains(got.Stderr, "removed "+names[0]+": ") {
		t.Error(got)
	}
	if got := ckptfs("ls"); got.Code != 0 || strings.Count(got.Stdout, "\n") != 2 || !strings.Contains(got.Stdout, "kept  mine\n") {
		t.Error(got)
	}
	if got := ckptfs("verify"); got.Code != 0 {
		t.Error(got)
	}
	flipMiddle(t, filepath.Join(store, "packs"))
	if got := ckptfs("verify"); got.Code != 0 { // it does not look there
		t.Error(got)
	}
	if got := ckptfs("verify", "--read-data"); got.Code != 1 || !strings.Contains(got.Stdout, "mine") {
		t.Error(got)
	}
}

// flipMiddle changes a bit amid the chunks of the largest pack.
func flipMiddle(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var path string
	var most int64
	for _, e := range list {
		if p := filepath.Join(dir, e.Name()); size(t, p) > most {
			path, most = p, size(t, p)
		}
	}
	b := read(t, path)
	b[len(b)/3] ^= 1
	write(t, path, b)
}

// TestDiskNeverFills takes checkpoints of one process after the other, whose memory has
// nothing in common, on a disk that holds four of them. No flag is given: the newest is
// always there, at worst at the second try.
func TestDiskNeverFills(t *testing.T) {
	small := harness.TempDir(t)
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=40m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	m := harness.NewMountAt(t, filepath.Join(small, "store"))
	const hold = `import os, time
b = os.urandom(9 << 20)
open('ready', 'w').close()
while not os.path.exists('go'): time.sleep(0.05)
open('result', 'w').write('ok\n')`
	var last string
	for range 8 {
		r := harness.StartCommand(t, harness.TempDir(t), harness.Python(t), "-c", hold)
		r.WaitReady()
		harness.Eventually(t, "a checkpoint", func() bool { return harness.Run(t, "cat", m.Image(r)).Code == 0 })
		last = "-" + itoa(r.PID) + "-"
		if names := strings.Join(m.Images(), " "); !strings.Contains(names, last) {
			t.Errorf("the checkpoint of pid %d is not among %s", r.PID, names)
		}
		r.Pass(false)
	}
	harness.Eventually(t, "old checkpoints to go", func() bool { return len(m.Images()) < 4 })
	names := m.Images()
	if !strings.Contains(strings.Join(names, " "), last) {
		t.Errorf("the newest went, %q are left", names)
	}
	for _, n := range names {
		harness.Must(t, harness.Binary(), "show", "--verify", filepath.Join(m.Dir, "images", n, "image"))
	}
	harness.Say(t, "the log", string(read(t, filepath.Join(small, "store/mount.log"))), "it was the oldest")
}
