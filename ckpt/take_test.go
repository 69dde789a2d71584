package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// startSleep starts a process that sleeps, and kills it in the end.
func startSleep(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // a test may have killed it already
		_ = cmd.Wait()
	})
	pid := cmd.Process.Pid
	eventually(t, "sleep to sleep", func() bool {
		b, _ := os.ReadFile(procPath(pid, "syscall"))
		return strings.HasPrefix(string(b), strconv.Itoa(unix.SYS_CLOCK_NANOSLEEP)+" ")
	})
	return pid
}

// eventually waits for something that is bound to happen.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 30000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("waited 30 s for %s", what)
}

// dies waits until a process has ended.
func dies(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "pid "+strconv.Itoa(pid)+" to die", func() bool {
		st, err := readStat(pid)
		return err != nil || st.State == 'Z'
	})
}

// stream takes the whole image and checks it.
func stream(t *testing.T, c *Checkpoint) *image.Reader {
	t.Helper()
	var b bytes.Buffer
	root, err := c.Stream(context.Background(), image.Writer(func(p []byte) error { b.Write(p); return nil }))
	if err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != c.Size() {
		t.Fatalf("the image has %d bytes, Size said %d", b.Len(), c.Size())
	}
	r, err := image.Open(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if r.Root() != root {
		t.Errorf("root %x, Stream said %x", r.Root(), root)
	}
	return r
}

func runs(t *testing.T, pid int) {
	t.Helper()
	st, err := readStat(pid)
	if err != nil || st.State != 'S' && st.State != 'R' {
		t.Errorf("pid %d: state %c, %v; want it to run", pid, st.State, err)
	}
	status, err := readStatus(pid)
	if err != nil || status.TracerPid != 0 {
		t.Errorf("pid %d is traced by %d, %v", pid, status.TracerPid, err)
	}
}

func TestTakeLeavesRunning(t *testing.T) {
	pid := startSleep(t)
	before, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c, err := Take(context.Background(), pid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		runs(t, pid)
		r := stream(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if th := r.Manifest.Tasks[0].Threads[0]; th.Blocked == nil || th.Blocked.NR != unix.SYS_CLOCK_NANOSLEEP {
			t.Errorf("a sleeping thread is blocked in %+v, want clock_nanosleep", th.Blocked)
		}
	}
	after, err := readMaps(pid)
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("mappings before %v\nand after %v, %v", before, after, err)
	}
	if kids, _ := children(pid); len(kids) != 0 {
		t.Errorf("children %v are left", kids)
	}
}

// slowSink blocks in Ready until it is told to go on.
type slowSink struct {
	began chan struct{} // something is in Ready
	goOn  chan struct{}
	busy  atomic.Int32 // how many are in Ready
}

type slowBlock struct {
	s *slowSink
	b []byte
}

func (s *slowSink) Block(n int) image.Block { return &slowBlock{s, make([]byte, n)} }

func (b *slowBlock) Bytes() []byte { return b.b }

func (b *slowBlock) Ready([]image.Chunk, []image.Hash) error {
	b.s.busy.Add(1)
	defer b.s.busy.Add(-1)
	select {
	case b.s.began <- struct{}{}:
	default:
	}
	<-b.s.goOn
	time.Sleep(time.Millisecond)
	return nil
}

func (b *slowBlock) Append() error { return nil }

// TestStreamCancelled: when Stream returns nobody reads the checkpoint any more, so that it can be
// closed.
func TestStreamCancelled(t *testing.T) {
	c, err := Take(context.Background(), startSleep(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	sink := &slowSink{began: make(chan struct{}, 1), goOn: make(chan struct{})}
	go func() {
		<-sink.began
		cancel()
		time.Sleep(10 * time.Millisecond) // time to do it wrong
		close(sink.goOn)
	}()
	if _, err := c.Stream(ctx, sink); !errors.Is(err, context.Canceled) {
		t.Errorf("Stream = %v, want it cancelled", err)
	}
	if n := sink.busy.Load(); n != 0 {
		t.Errorf("%d blocks are still being made ready", n)
	}
}

func TestTakeThatIsNotReadLeavesNothing(t *testing.T) {
	pid := startSleep(t)
	c, err := Take(context.Background(), pid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	snap := c.procs[0].mem.snap.PID
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Stream(ctx, image.Writer(func([]byte) error { return nil })); !errors.Is(err, context.Canceled) {
		t.Errorf("Stream = %v, want it cancelled", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if st, err := readStat(snap); err == nil && st.State != 'Z' && st.State != 'X' {
		t.Errorf("the snapshot, pid %d, lives on in state %c", snap, st.State)
	}
	runs(t, pid)
}

func TestTakeAndKill(t *testing.T) {
	pid := startSleep(t)
	c, err := Take(context.Background(), pid, Options{After: Kill})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Finish(); err == nil {
		t.Error("Finish before Stream succeeded")
	}
	stream(t, c)
	if err := errors.Join(c.Finish(), c.Close()); err != nil {
		t.Error(err)
	}
	dies(t, pid)
}

func TestTakeAndStop(t *testing.T) {
	pid := startSleep(t)
	c, err := Take(context.Background(), pid, Options{After: Stop})
	if err != nil {
		t.Fatal(err)
	}
	stream(t, c)
	if err := errors.Join(c.Finish(), c.Close()); err != nil {
		t.Error(err)
	}
	eventually(t, "it to be stopped", func() bool {
		st, err := readStat(pid)
		return err == nil && st.State == 'T'
	})
}

// TestTakeWhenCloneFails keeps the target in a cgroup that has room for no other process, so
// that its memory has to be copied while it is frozen.
func TestTakeWhenCloneFails(t *testing.T) {
	pid := startSleep(t)
	limitPIDs(t, pid)
	var log []string
	c, err := Take(context.Background(), pid, Options{Log: func(s string) { log = append(log, s) }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	runs(t, pid)
	if all := strings.Join(log, "\n"); !strings.Contains(all, "no copy-on-write snapshot") {
		t.Errorf("the log does not say that there was no snapshot:\n%s", all)
	}
	r := stream(t, c)
	stored := uint64(0)
	for _, v := range r.Manifest.MMs[0].VMAs {
		stored += extentsLen(v.Extents)
	}
	if stored == 0 {
		t.Error("the image holds no memory")
	}
}

// limitPIDs puts a process into a cgroup with room for it alone.
func limitPIDs(t *testing.T, pid int) {
	t.Helper()
	base := "/sys/fs/cgroup/pids" // v1
	if _, err := os.Stat(base); err != nil {
		base = "/sys/fs/cgroup"                                              // v2
		_ = os.WriteFile(base+"/cgroup.subtree_control", []byte("+pids"), 0) // it is on already, or the write below fails
	}
	home := base + cgroupIn(t, base)
	dir := filepath.Join(base, fmt.Sprintf("ckptfs-test-%d", pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(home+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0) // it may be dead already
		for i := 0; i < 100 && os.Remove(dir) != nil; i++ {
			time.Sleep(10 * time.Millisecond)
		}
	})
	for _, w := range [][2]string{{"pids.max", "1"}, {"cgroup.procs", strconv.Itoa(pid)}} {
		if err := os.WriteFile(filepath.Join(dir, w[0]), []byte(w[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// cgroupIn is our own cgroup in the hierarchy at base.
func cgroupIn(t *testing.T, base string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "pids" && strings.HasSuffix(base, "pids") || f[0] == "0" && !strings.HasSuffix(base, "pids") {
			return f[2]
		}
	}
	return "/"
}

func TestFrozen(t *testing.T) {
	pid := startSleep(t)
	z, err := Freeze(context.Background(), pid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := z.Take(context.Background(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		stream(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if st, err := readStat(pid); err != nil || st.State != 't' {
			t.Errorf("state %c, %v; want it to stay frozen", st.State, err)
		}
	}
	if err := z.Thaw(); err != nil {
		t.Error(err)
	}
	runs(t, pid)
	if z, err = Freeze(context.Background(), pid, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := z.Kill(); err != nil {
		t.Error(err)
	}
	dies(t, pid)
}

func TestImpossibleRoots(t *testing.T) {
	gonePID := startSleep(t)
	if err := unix.Kill(gonePID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dies(t, gonePID)
	for _, c := range []struct {
		pid  int
		want error
	}{{1, ErrInit}, {2, ErrKernelThread}, {os.Getpid(), ErrSelf}, {os.Getppid(), ErrSelf}, {gonePID, ErrZombie}, {1 << 30, ErrNoProcess}} {
		_, err := Take(context.Background(), c.pid, Options{})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), strconv.Itoa(c.pid)) {
			t.Errorf("Take(%d) = %v, want %v with the pid in it", c.pid, err, c.want)
		}
		found, err := Explain(c.pid, nil)
		if c.pid == os.Getppid() { // of a tree that we are only somewhere in it tells the rest
			if err != nil || len(found) == 0 || int(found[0].PID) != os.Getpid() || !strings.Contains(found[0].Remedy, "setsid -f") {
				t.Errorf("Explain(%d) = %v, %v", c.pid, found, err)
			}
		} else if !errors.Is(err, c.want) {
			t.Errorf("Explain(%d) = %v, want %v", c.pid, err, c.want)
		}
	}
}
