package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

func TestExtents(t *testing.T) {
	for _, tc := range []struct {
		add  []span
		want extents
	}{
		{[]span{{0, 10}, {10, 20}}, extents{{0, 20}}},
		{[]span{{10, 20}, {0, 10}}, extents{{0, 20}}},
		{[]span{{0, 10}, {20, 30}, {5, 25}}, extents{{0, 30}}},
		{[]span{{0, 10}, {20, 30}, {40, 50}}, extents{{0, 10}, {20, 30}, {40, 50}}},
		{[]span{{20, 30}, {0, 10}, {10, 20}, {3, 4}}, extents{{0, 30}}},
		{[]span{{5, 5}}, nil},
		{[]span{{1, 2}, {3, 4}, {0, 9}}, extents{{0, 9}}},
	} {
		var e extents
		for _, s := range tc.add {
			e.add(s)
		}
		if !slices.Equal(e, tc.want) {
			t.Errorf("%v: got %v, want %v", tc.add, e, tc.want)
		}
	}
	e := extents{{0, 10}, {20, 30}}
	e.cut(25)
	if !slices.Equal(e, extents{{0, 10}, {20, 25}}) || e.whole() != 10 {
		t.Errorf("cut at 25: %v", e)
	}
	e.cut(20)
	e.cut(5)
	if !slices.Equal(e, extents{{0, 5}}) {
		t.Errorf("cut at 5: %v", e)
	}
}

func TestErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{failf(syscall.EDEADLK, "x"), syscall.EDEADLK},
		{fmt.Errorf("x: %w", image.ErrNotImage), syscall.ENOEXEC},
		{&image.CutError{Have: 1, Want: 2}, syscall.EBADMSG},
		{&image.CorruptError{}, syscall.EBADMSG},
		{&image.FieldError{}, syscall.EBADMSG},
		{image.ErrVersion, syscall.EPROTO},
		{&image.FeatureError{}, syscall.EOPNOTSUPP},
		{&image.RefusedError{}, syscall.EOPNOTSUPP},
		{&os.PathError{Err: syscall.ENOSPC}, syscall.ENOSPC},
		{os.ErrNotExist, syscall.ENOENT},
		{os.ErrExist, syscall.EEXIST},
		{os.ErrInvalid, syscall.EILSEQ},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), syscall.ETIMEDOUT},
		{context.Canceled, syscall.EINTR},
		{errors.New("anything else"), syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
	} {
		if got := errno(tc.err); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, got, tc.want)
		}
	}
	if neverEINTR(syscall.EINTR) == syscall.EINTR {
		t.Error("EINTR stays EINTR")
	}
}

func TestProcess(t *testing.T) {
	p, err := readProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.tgid != os.Getpid() || p.ppid != os.Getppid() || p.start == 0 || p.comm == "" || p.rss == 0 || int(p.uid) != os.Geteuid() {
		t.Errorf("%+v", p)
	}
	q := &process{pid: 7}
	if err := q.parseStat([]byte("7 (a ) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 100 55 1\n")); err != nil {
		t.Fatal(err)
	}
	if q.comm != "a ) b (c" || q.ppid != 1 || q.flags != 4194560 || q.start != 12345 || q.rss != 55 {
		t.Errorf("%+v", q)
	}
	for _, bad := range []string{"", "7", "7 (x", ") (", "7 (x) S 1", "7 (x) S a 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 100 55 1"} {
		if err := q.parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a stat", bad)
		}
	}
	q.parseStatus([]byte("Tgid:\t5\nTracerPid:\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000010001\nSigBlk:\t0000000000000001\nSigIgn:\t0\nempty:\n"))
	if q.tgid != 5 || q.tracer != 9 || q.uid != 2 || q.gid != 6 || q.pending != 1<<16|2 || !q.wantsOut() {
		t.Errorf("%+v", q)
	}
	q.pending = 1 << (syscall.SIGCHLD - 1)
	if q.wantsOut() {
		t.Error("SIGCHLD interrupts")
	}
	if _, err := readProcess(1 << 30); errno(err) != syscall.ESRCH {
		t.Error(err)
	}
}

// TestWatch watches callers that want out, and one that is being checkpointed itself.
func TestWatch(t *testing.T) {
	start := func(traced bool) *exec.Cmd {
		cmd := exec.Command("sleep", "100")
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: traced}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may be dead
			_ = cmd.Wait()         // it was killed: that is what Wait says
		})
		return cmd
	}
	over := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { close(over) })
	if err := watch(start(false).Process.Pid, over); err != nil {
		t.Errorf("a caller that waits: %v", err)
	}
	if err := watch(1<<30, nil); err != syscall.EINTR {
		t.Errorf("a caller that is gone: %v", err)
	}
	runtime.LockOSThread() // for ever: this thread is the tracer
	traced := start(true).Process.Pid
	for stat := []byte(nil); !bytes.Contains(stat, []byte(") t ")); { // until then a SIGTRAP is pending
		var err error
		if stat, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", traced)); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	if err := watch(traced, nil); errno(err) != syscall.EDEADLK || time.Since(begin) < deadlockGrace {
		t.Errorf("a caller that we trace: %v after %v", err, time.Since(begin))
	}
}

func TestSeriesName(t *testing.T) {
	for comm, want := range map[string]string{"python3": "python3-7", "a/b c": "a-b-c-7", "../..": "-..-7"[1:], "": "process-7"} {
		if got := seriesName(comm, 7); comm != "../.." && got != want {
			t.Errorf("%q: %s, want %s", comm, got, want)
		} else if got[0] == '.' || got[0] == '-' {
			t.Errorf("%q: %s", comm, got)
		}
	}
}

func TestSibling(t *testing.T) {
	for name, want := range map[string]int{"f": 0, "f.status": 1, "f.log": 2, "f.out": 3, ".log": 0, "f.log.gz": 0} {
		if _, part := sibling(name); part != want {
			t.Errorf("%q: %d, want %d", name, part, want)
		}
	}
}

func TestClearStale(t *testing.T) {
	dir := t.TempDir()
	if stale, err := ClearStale(dir); stale || err != nil {
		t.Errorf("a plain folder: %v, %v", stale, err)
	}
	if err := CheckDir(dir + "/none"); errno(err) != syscall.ENOENT {
		t.Error(err)
	}
	if err := CheckDir("/proc/self/exe"); errno(err) != syscall.ENOTDIR {
		t.Error(err)
	}
}
