package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/ckptfs/ckptfs/restore"
	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// runCommand runs a command line and returns its exit code and what it wrote.
func runCommand(t *testing.T, stdin string, args ...string) (code int, out, errs string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name, content string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString(content); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		return f
	}
	c := &console{In: file("in", stdin), Out: file("out", ""), Err: file("err", "")}
	code = run(t.Context(), c, args)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return code, read("out"), read("err")
}

func TestHelp(t *testing.T) {
	code, out, errs := runCommand(t, "", "--help")
	if code != 0 || errs != "" || !strings.Contains(out, "Exit codes:") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	for _, cmd := range commands() {
		if made := cmd.make(); made.name != cmd.name {
			t.Errorf("%s is made as %s", cmd.name, made.name)
		}
		if !strings.Contains(out, "\n  "+cmd.name+" ") {
			t.Errorf("%s is not in the help", cmd.name)
		}
		code, text, errs := runCommand(t, "", append(strings.Fields(cmd.name), "--help")...)
		if code != 0 || errs != "" || !strings.Contains(text, "Example") || !strings.Contains(text, "  ckptfs "+cmd.name) {
			t.Errorf("%s --help: %d %q %q", cmd.name, code, text, errs)
		}
	}
	for i, e := range exitTexts {
		if i > 0 && e.code <= exitTexts[i-1].code {
			t.Errorf("exit code %d is listed twice or out of order", e.code)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{
		"", "nonsense", "dump", "dump x", "dump -1", "dump 0", "dump 1 2", "dump --nonsense 1", "dump 1 --kill --stop", "dump 99999 -o " + dir,
		"restore", "restore a b", "restore " + dir, "show", "show a b", "explain", "explain x", "mount", "umount", "check x", "ls x", "demo x",
		"key", "key old f", "key new", "key new a b", "gc --max-size 5parsecs", "gc --keep-within -1h", "mount --keep-last -1 " + dir, "mount --store s3:// " + dir,
		"ls --store http://bucket", "ls --cache-size x",
	} {
		code, out, errs := runCommand(t, "", strings.Fields(line)...)
		if code != exitUsage || out != "" || !strings.HasPrefix(errs, "ckptfs: ") {
			t.Errorf("ckptfs %s: %d %q %q", line, code, out, errs)
		}
	}
}

func TestExitCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("restore of x: %w", err) }
	for _, tc := range []struct {
		err  error
		code int
		says string // part of the sentence
	}{
		{nil, exitOK, ""},
		{errors.New("anything"), exitFailed, "anything"},
		{usagef("bad %d", 1), exitUsage, "bad 1"},
		{statusError(42), 42, ""},
		{wrap(&image.RefusedError{Findings: []image.Finding{{Severity: image.Refuse, PID: 7, FD: 3, Kind: "socket", What: "why"}}}), exitFailed, "refused: pid 7 fd 3 (socket): why"},
		{wrap(image.ErrNotImage), exitBadImage, "not a ckptfs image"},
		{wrap(&image.CutError{Have: 1, Want: 2}), exitBadImage, "cut"},
		{wrap(&image.CorruptError{}), exitBadImage, "damaged"},
		{wrap(image.ErrVersion), exitBadImage, "newer"},
		{wrap(&image.FeatureError{}), exitBadImage, "feature"},
		{wrap(&ckpt.TargetError{PID: 7, Err: ckpt.ErrNoProcess}), exitPID, "no such process"},
		{wrap(&restore.PIDTakenError{PID: 7, Comm: "cat"}), exitPID, "pid 7 is in use by cat"},
		{wrap(context.Canceled), exitInterrupted, "interrupted"},
		{wrap(context.DeadlineExceeded), exitTimeout, "deadline"},
		{wrap(restore.ErrTimeout), exitTimeout, "too long"},
		{wrap(&store.LockedError{Dir: "/s", PID: 7}), exitStorage, "process 7"},
		{wrap(unix.ENOSPC), exitStorage, "make room"},
		{wrap(&store.BucketError{Op: "put", URL: "s3://b/x", Tries: 9, Err: unix.ECONNREFUSED}), exitStorage, "check the server"},
		{wrap(&store.KeyError{Dir: "/s", Sealed: true}), exitFailed, "--key-file"},
		{wrap(&restore.AccessError{PID: 7, TID: 7, CallerUID: 5, What: "x"}), exitPrivilege, "as root"},
		{wrap(unix.EPERM), exitPrivilege, "needs root"},
		{wrap(unix.EIO), exitStorage, "input/output error"},
	} {
		if got := exitCode(tc.err); got != tc.code {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.code)
		}
		if tc.err != nil && !strings.Contains(sentence(tc.err), tc.says) {
			t.Errorf("%v: %q, want %q", tc.err, sentence(tc.err), tc.says)
		}
	}
}

func TestNoSuchProcess(t *testing.T) {
	out := filepath.Join(t.TempDir(), "f")
	for _, args := range [][]string{{"dump", "999999999", "-o", out}, {"explain", "999999999"}, {"dump", "2", "-o", out}, {"explain", "1"}} {
		code, _, errs := runCommand(t, "", args...)
		if code != exitPID || !strings.Contains(errs, "pid "+args[1]) {
			t.Errorf("%v: %d %q", args, code, errs)
		}
	}
	if l, err := os.ReadDir(filepath.Dir(out)); err != nil || len(l) != 0 {
		t.Errorf("left behind: %v %v", l, err)
	}
}

func TestShow(t *testing.T) {
	b := string(imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill))
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte(b), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"show", file}, {"show", "-"}, {"show", "--verify", "-"}, {"show", "--json", file}} {
		code, out, errs := runCommand(t, b, args...)
		if code != 0 || errs != "" || !strings.Contains(out, "1001") {
			t.Errorf("%v: %d %q %q", args, code, out, errs)
		}
	}
	for _, bad := range []string{"", "hello", strings.Repeat("x", 10000), b[:len(b)-1], b[:5000], b + "x", b[:9000] + "X" + b[9001:]} {
		for _, args := range [][]string{{"show", "--verify", "-"}, {"restore", "-"}} {
			code, out, errs := runCommand(t, bad, args...)
			if code != exitBadImage || out != "" || !strings.Contains(errs, "standard input") {
				t.Errorf("%v of %d bad bytes: %d %q %q", args, len(bad), code, out, errs)
			}
		}
	}
	if code, _, errs := runCommand(t, "", "show", file+".none"); code != exitFailed || !strings.Contains(errs, "no such file") {
		t.Errorf("a missing file: %d %q", code, errs)
	}
}

func TestStoreCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	if code, _, errs := runCommand(t, "", "ls", "--store", dir); code != exitFailed || !strings.Contains(errs, "there is no store") {
		t.Errorf("no store: %d %q", code, errs)
	}
	st, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := runCommand(t, "", "ls", "--store", dir)
	if code != exitStorage || !strings.Contains(errs, fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("a locked store: %d %q", code, errs)
	}
	in, err := st.Begin(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	chunk := []byte("some bytes")
	if err := errors.Join(in.Put(store.Hash(image.HashOf(chunk)), chunk), in.Commit(), st.Close()); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"ls": "one", "ls --json": `"Name": "one"`, "stats": "1 checkpoints", "stats --json": `"Images": 1`, "gc": "packs removed", "gc --json": `"Freed"`,
		"verify": "", "verify --json": `"faults": []`, "verify --read-data": "",
	} {
		code, out, errs := runCommand(t, "", append(strings.Fields(args), "--store", dir)...)
		if code != 0 || errs != "" || !strings.Contains(out, want) {
			t.Errorf("%s: %d %q %q", args, code, out, errs)
		}
	}
}

// TestGCSettles: what a checkpoint has stored fast is compressed better, and gc says so.
func TestGCSettles(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		dir := t.TempDir()
		st, err := store.Open(dir, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		in, err := st.Begin(t.Context(), "one")
		if err != nil {
			t.Fatal(err)
		}
		chunk := []byte(strings.Repeat("some bytes, and more ", 1000))
		if err := errors.Join(in.Put(store.Hash(image.HashOf(chunk)), chunk), in.Commit(), st.Close()); err != nil {
			t.Fatal(err)
		}
		args, first, second := []string{"gc", "--store", dir}, "compressed again", "0 packs removed"
		if asJSON {
			args, first, second = append(args, "--json"), `"Settled": 1`, `"Settled": 0`
		}
		for _, want := range []string{first, second} {
			if code, out, errs := runCommand(t, "", args...); code != 0 || errs != "" || !strings.Contains(out, want) {
				t.Errorf("%d %q %q, want %q", code, out, errs, want)
			}
		}
	}
}
