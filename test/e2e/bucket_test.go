package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/store/s3test"
	"github.com/ckptfs/ckptfs/test/harness"
)

// TestBucket takes checkpoints on one machine and restores them on another: two mounts with
// caches of their own share a bucket, encrypted.
func TestBucket(t *testing.T) {
	server := s3test.Start(t)
	for _, kv := range append(server.Env(), "AWS_EC2_METADATA_DISABLED=true") {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	place, dir := "s3://"+server.Bucket+"/fleet", harness.TempDir(t)
	key := filepath.Join(dir, "key")
	harness.Must(t, harness.Binary(), "key", "new", key)
	machine := func(name string) *harness.Mount {
		return harness.NewMountAt(t, place, "--key-file", key, "--cache", filepath.Join(dir, name))
	}
	a, b := machine("a"), machine("b")
	r := harness.Start(t, "mem_anon")
	harness.Must(t, "cat", a.Image(r))
	harness.Must(t, "cat", a.Image(r))
	names := b.WaitImages(2)
	saved := filepath.Join(b.Dir, "images", names[1], "image")
	harness.Must(t, harness.Binary(), "show", "--verify", saved)
	if got, want := read(t, saved), read(t, filepath.Join(a.Dir, "images", names[1], "image")); !bytes.Equal(got, want) {
		t.Error("the two machines read different images")
	}
	r.Kill()
	r.Again()
	harness.Must(t, "cp", saved, b.Restore("moved"))
	r.Restored()
	r.Pass(true)
	harness.Must(t, "rm", "-r", filepath.Join(b.Dir, "images", names[0]))
	a.WaitImages(1)
	cache := ""
	ckptfs := func(args ...string) harness.Result {
		return harness.Run(t, append([]string{harness.Binary(), args[0], "--store", place, "--cache", filepath.Join(dir, cache)}, args[1:]...)...)
	}
	for _, cache = range []string{"a", "b", "c"} { // "a" and "b" are in use by the mounts, which are asked
		if cache == "c" {
			a.Unmount()
			b.Unmount()
		}
		for _, args := range [][]string{{"ls"}, {"verify"}, {"verify", "--read-data"}, {"stats"}, {"gc"}} {
			if got := ckptfs(append(args, "--key-file", key)...); got.Code != 0 {
				t.Errorf("%v with cache %s: %v", args, cache, got)
			}
		}
		if got := ckptfs("ls"); got.Code == 0 || !strings.Contains(got.Stderr, "--key-file") {
			t.Errorf("without the key, with cache %s: %v", cache, got)
		}
	}
	noSecret(t, server.Dir, "mem_anon")
	noSecret(t, dir, "mem_anon")
}

// noSecret fails if a file below dir holds a text: names of programs stand in every image.
func noSecret(t *testing.T, dir, text string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, ".log") {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("%s holds %q", path, text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
