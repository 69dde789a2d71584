package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/restore"
	"golang.org/x/sys/unix"
)

func TestOutput(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	list := func() string {
		l, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(l, " ")
	}
	write := func(commit bool) {
		t.Helper()
		o, err := createOutput(&console{}, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(name); len(b) != 0 {
			t.Errorf("half a file is visible: %q", b)
		}
		if commit {
			if err := o.commit(true); err != nil {
				t.Fatal(err)
			}
		}
		o.discard()
	}
	if write(false); list() != "" {
		t.Errorf("left behind: %s", list())
	}
	if write(true); list() != name {
		t.Errorf("after commit: %s", list())
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "data" {
		t.Errorf("%q %v", b, err)
	}
	o, err := createOutput(&console{}, "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.commit(true); err != nil {
		t.Error(err)
	}
	if o.discard(); !exists("/dev/null") {
		t.Error("/dev/null is gone")
	}
	if _, err := createOutput(&console{}, filepath.Join(dir, "none", "f")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestWaiter waits for processes that are not ours, but children of a shell that reaps them.
func TestWaiter(t *testing.T) {
	release := kernelRelease()
	for line, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143} {
		cmd := exec.Command("sh", "-c", "sh -c 'sleep 0.3; "+line+"' & echo $!; wait; sleep 0.1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 32)
		n, err := out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := parsePID(strings.TrimSpace(string(buf[:n])))
		if err != nil {
			t.Fatal(err)
		}
		w, err := newWaiter(pid)
		if err != nil {
			t.Fatal(err)
		}
		code, err := w.wait(t.Context())
		w.close()
		if !kernelAtLeast(release, 6, 15) {
			want = 0
		}
		if err != nil || code != want {
			t.Errorf("%s: %d %v, want %d", line, code, err, want)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	w, err := newWaiter(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := newWaiter(1 << 29); err == nil {
		t.Error("waits for a process that is not there")
	}
}

func TestPIDFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pid")
	for _, pid := range []int{12345, 7} {
		if err := writePIDFile(name, pid); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "7\n" {
		t.Errorf("%q %v", b, err)
	}
	if err := writePIDFile(name+"/x", 7); err == nil {
		t.Error("no error")
	}
}

func TestNames(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if got := imageName("a/b c", 7, at); got != "a-b-c-7-20260102T030405Z.ckpt" {
		t.Error(got)
	}
	if got := imageName("../x", 7, at); strings.HasPrefix(got, ".") || strings.Contains(got, "/") {
		t.Error(got)
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 41: "2.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for release, want := range map[string]bool{"6.8.0": true, "6.8": true, "6.18.44-x": true, "7.0": true, "6.7.9": false, "5.10.0-8-amd64": false, "": false, "x": false} {
		if got := kernelAtLeast(release, 6, 8); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

func TestEngineErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want unix.Errno
	}{
		{&ckpt.TargetError{Err: ckpt.ErrNoProcess}, unix.ESRCH},
		{&ckpt.TargetError{Err: ckpt.ErrSelf}, unix.EDEADLK},
		{&ckpt.TargetError{Err: ckpt.ErrKernelThread}, unix.EOPNOTSUPP},
		{&restore.PIDTakenError{}, unix.EEXIST},
		{&restore.FileError{}, unix.ESTALE},
		{&restore.FileError{Err: unix.ENOENT}, 0}, // fusefs finds it itself
		{&restore.HostError{}, unix.EOPNOTSUPP},
		{&restore.AccessError{}, unix.EPERM},
		{&restore.ImageError{}, unix.EBADMSG},
		{restore.ErrTimeout, unix.ETIMEDOUT},
		{image.ErrCut, 0},
		{nil, 0},
	} {
		if got := engineErrno(tc.err); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, got, tc.want)
		}
		if err := withErrno(tc.err); !errors.Is(err, tc.err) {
			t.Errorf("%v is lost", tc.err)
		}
	}
}
