package main

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
)

// fillStore makes a store with images of one series, 256 KiB of their own each, the oldest
// first.
func fillStore(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "s")
	st, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.NewChaCha8([32]byte{1})
	for _, name := range names {
		in, err := st.Begin(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		in.SetSeries("job-1")
		for range 4 {
			b := make([]byte, 64<<10)
			if _, err := rnd.Read(b); err != nil {
				t.Fatal(err)
			}
			if err := in.Put(store.Hash(image.HashOf(b)), b); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// listStore returns what `ls --json` says, by name.
func listStore(t *testing.T, dir string) map[string]listed {
	t.Helper()
	code, out, errs := runCommand(t, "", "ls", "--json", "--store", dir)
	var list []listed
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		t.Fatal(code, out, errs, err)
	}
	byName := map[string]listed{}
	for _, l := range list {
		byName[l.Name] = l
	}
	return byName
}

func TestGCFlags(t *testing.T) {
	for _, tc := range []struct {
		flags string
		left  string
		says  string // on standard error
	}{
		{"", "a b c d", ""},
		{"--expire 1s", "a b c d", ""},
		{"--keep-last 2", "c d", "removed a: not among the newest 2 of job-1"},
		{"--keep-last 2 --keep-within 1w", "a b c d", ""},
		{"--max-size 600KiB", "c d", "removed b: the images need more than 614400 bytes"},
		{"--max-size 1", "d", "more than --max-size had to stay"},
		{"--max-size 100%", "a b c d", ""},
	} {
		dir := fillStore(t, "a", "b", "c", "d")
		args := append([]string{"gc", "--json", "--store", dir}, strings.Fields(tc.flags)...)
		code, out, errs := runCommand(t, "", args...)
		var rep struct {
			Freed   int64
			Removed []struct{ Name, Why string }
		}
		if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
			t.Fatal(tc.flags, code, out, errs, err)
		}
		var left []string
		for name := range listStore(t, dir) {
			left = append(left, name)
		}
		slices.Sort(left)
		if got := strings.Join(left, " "); got != tc.left || len(rep.Removed) != 4-len(left) {
			t.Errorf("gc %s: left %q, want %q; removed %+v", tc.flags, got, tc.left, rep.Removed)
		}
		if freed := int64(4-len(left)) * (256 << 10); rep.Freed < freed || rep.Freed > freed+64<<10 {
			t.Errorf("gc %s: %d bytes freed for %d images", tc.flags, rep.Freed, 4-len(left))
		}
		if !strings.Contains(errs, tc.says) || (tc.says == "") != (errs == "") {
			t.Errorf("gc %s says %q, want %q", tc.flags, errs, tc.says)
		}
	}
}

// TestSizesShown compares what ls and stats say of sizes, for people and for scripts.
func TestSizesShown(t *testing.T) {
	dir := fillStore(t, "a", "b")
	st, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.Rename("a", "mine"), st.Close()); err != nil {
		t.Fatal(err)
	}
	list := listStore(t, dir)
	for name, l := range list {
		if l.Size != 256<<10 || l.Unique < l.Size || l.Ratio < 0.99 || l.Ratio > 1 || l.Kept != (name == "mine") || l.Series != "job-1" {
			t.Errorf("%s: %+v", name, l)
		}
	}
	_, out, _ := runCommand(t, "", "ls", "--store", dir)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "1.0x  kept  mine") || strings.Contains(lines[1], "kept") {
		t.Errorf("ls: %q", out)
	}
	_, out, _ = runCommand(t, "", "stats", "--json", "--store", dir)
	var s store.Stats
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Kept != 1 || s.Unique != list["mine"].Unique+list["b"].Unique || s.Logical != 512<<10 {
		t.Errorf("stats: %q, %v", out, err)
	}
	_, out, _ = runCommand(t, "", "stats", "--store", dir)
	if !strings.Contains(out, "2 checkpoints (1 kept), 512.0 KiB as files") {
		t.Errorf("stats: %q", out)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// TestVerifyModes damages a chunk, which only reading finds, and then the end of a pack.
func TestVerifyModes(t *testing.T) {
	dir := fillStore(t, "a")
	packs, err := filepath.Glob(filepath.Join(dir, "packs/*.pack"))
	if err != nil || len(packs) != 2 { // one is of nodes
		t.Fatal(packs, err)
	}
	slices.SortFunc(packs, func(a, b string) int { return int(fileSize(t, b) - fileSize(t, a)) })
	flip := func(fromEnd bool) {
		t.Helper()
		b, err := os.ReadFile(packs[0])
		if err != nil {
			t.Fatal(err)
		}
		i := 1000
		if fromEnd {
			i = len(b) - 70
		}
		b[i] ^= 1
		if err := os.WriteFile(packs[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, args string, code int) {
		t.Helper()
		got, out, errs := runCommand(t, "", append(strings.Fields(args), "--store", dir)...)
		if got != code || (code != 0) != strings.Contains(out, "pack") || (code != 0) != strings.Contains(errs, "damaged") {
			t.Errorf("%s, %s: %d %q %q", when, args, got, out, errs)
		}
	}
	check("whole", "verify", 0)
	check("whole", "verify --read-data", 0)
	flip(false)
	check("a damaged chunk", "verify", 0)
	check("a damaged chunk", "verify --read-data", exitFailed)
	check("a damaged chunk", "verify --read-data --json", exitFailed)
	flip(true)
	check("a damaged footer", "verify", exitFailed)
	check("a damaged footer", "verify --json", exitFailed)
}

func TestKeyNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k")
	if code, out, errs := runCommand(t, "", "key", "new", file); code != 0 || out != "" || errs != "" {
		t.Fatal(code, out, errs)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if code, _, errs := runCommand(t, "", "key", "new", file); code != exitFailed || !strings.Contains(errs, file) || !strings.Contains(errs, "exist") {
		t.Errorf("over an existing key: %d %q", code, errs)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the key changed: %v", err)
	}
	dir := fillStore(t, "a")
	if code, _, errs := runCommand(t, "", "ls", "--store", dir, "--key-file", file+".none"); code != exitFailed || !strings.Contains(errs, file+".none") {
		t.Errorf("a missing key: %d %q", code, errs)
	}
}

func TestStoreLocation(t *testing.T) {
	t.Chdir("/tmp")
	for in, want := range map[string]string{
		"/a/b": "/a/b", "a/b/": "/tmp/a/b", "s3://bucket": "s3://bucket", "s3://bucket/a/b/": "s3://bucket/a/b", "": "/tmp", "s3:/x": "/tmp/s3:/x",
		"s3://": "", "s3:///": "", "http://x": "", "S3://x": "",
	} {
		got, err := storeLocation(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	f := storeFlags{place: "s3://bucket/a", cache: "c", keyFile: "k"}
	if err := f.resolve(); err != nil || f.cache != "/tmp/c" || f.keyFile != "/tmp/k" || f.folder() != "/tmp/c/bucket%2Fa" {
		t.Errorf("%+v, %q, %v", f, f.folder(), err)
	}
	f = storeFlags{place: "s"}
	if err := f.resolve(); err != nil || f.folder() != "/tmp/s" || f.keyFile != "" {
		t.Errorf("%+v, %q, %v", f, f.folder(), err)
	}
	limit := keepFlags{size: limitFlag{set: true, percent: 10}}
	if _, err := limit.policy(&storeFlags{place: "s3://bucket"}, nil); exitCode(err) != exitUsage {
		t.Errorf("a part of a bucket: %v", err)
	}
}

// TestAgain hands a mount's command line on to the server in the background.
func TestAgain(t *testing.T) {
	parse := func(args []string) *mountFlags {
		f := newMountFlags()
		if err := f.flags.Parse(args); err != nil {
			t.Fatal(args, err)
		}
		return f
	}
	for _, line := range []string{
		"", "--keep-last 0 --keep-within 0 --expire 0 --max-size 0", "--max-size 10% --keep-within 90m", "--max-size 1000001 --cache-size 3MB --key-file k --cache c",
		"--store s3://b/p --log /l --restore-timeout 3s",
	} {
		f := parse(strings.Fields(line))
		got := parse(f.again()[1:])
		if got.at != f.at || got.keep != f.keep || got.log != f.log || got.timeout != f.timeout {
			t.Errorf("%s: %+v became %+v", line, f, got)
		}
	}
}
