package fusefs_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/store"
)

// serveEnv makes the test binary serve a mount below the folder it names: a process must
// never use a mount that it serves itself.
const serveEnv = "FUSEFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve mounts dir/mnt with a store in dir/store and a fake engine that is told what to do
// by files in dir/ctl, until standard input ends.
func serve(dir string) error {
	st, err := store.Open(filepath.Join(dir, "store"), store.Options{CheckHashes: true})
	if err != nil {
		return err
	}
	spool := filepath.Join(dir, "spool")
	if err := os.Mkdir(spool, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	srv, err := fusefs.Mount(fusefs.Options{Dir: filepath.Join(dir, "mnt"), Source: "test", Engine: &fake{ctl: filepath.Join(dir, "ctl")},
		Store: st, Spool: spool, RestoreTimeout: 5 * time.Second, Logf: log.New(f, "", log.Lmicroseconds).Printf})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := srv.Unmount(); err != nil {
		return err
	}
	srv.Wait()
	return st.Close()
}

// fake is an engine whose every checkpoint has other bytes and another size.
type fake struct {
	ctl string
	gen atomic.Int64
}

// event adds a line to a log in the control folder.
func (e *fake) event(format string, args ...any) {
	f, err := os.OpenFile(filepath.Join(e.ctl, "events"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err) // of a test helper
	}
	defer f.Close()
	fmt.Fprintf(f, format+"\n", args...)
}

// number reads a number from the control folder, 0 if there is none.
func (e *fake) number(name string) int {
	b, err := os.ReadFile(filepath.Join(e.ctl, name))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func (e *fake) sleep(ctx context.Context, name string) error {
	select {
	case <-time.After(time.Duration(e.number(name)) * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *fake) fail(name string) error {
	if n := e.number(name); n != 0 {
		return fmt.Errorf("the fake was told so: %w", syscall.Errno(n))
	}
	return nil
}

func (e *fake) Take(ctx context.Context, pid int, log func(string)) (fusefs.Checkpoint, error) {
	e.event("take %d", pid)
	if err := errors.Join(e.sleep(ctx, "take-delay"), e.fail("take-errno")); err != nil {
		return nil, err
	}
	log("taken by the fake")
	b, m, chunks, err := fakeImage(e.gen.Add(1))
	return &fakeCheckpoint{e, b, m, chunks}, err
}

func (e *fake) Estimate(int) (int64, error) { return 8 << 20, nil }

func (e *fake) Explain(pid int) ([]image.Finding, error) {
	return []image.Finding{{Severity: image.Lose, PID: int32(pid), FD: 3, Kind: "fake", What: "is lost"}}, nil
}

func (e *fake) Tree(pid int) ([]int, error) {
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", tree[i]))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, _ := os.ReadFile(f) // "" for one that ended
			for _, s := range strings.Fields(string(b)) {
				kid, _ := strconv.Atoi(s)
				tree = append(tree, kid)
			}
		}
	}
	return tree, nil
}

func (e *fake) Freeze(_ context.Context, pid int) (fusefs.Frozen, error) {
	e.event("freeze %d", pid)
	return &fakeFrozen{e, pid}, e.fail("freeze-errno")
}

func (e *fake) Restore(ctx context.Context, r *image.Reader, o fusefs.RestoreOptions) (*fusefs.Restored, error) {
	e.event("restore %s", r.Root())
	if err := errors.Join(e.sleep(ctx, "restore-delay"), e.fail("restore-errno")); err != nil {
		return nil, err
	}
	o.Log("restored by the fake")
	if err := os.WriteFile(o.OutPath, []byte("hello from the tree\n"), 0o600); err != nil {
		return nil, err
	}
	return &fusefs.Restored{Root: 1000, PIDs: []int{1000, 1001}, Warnings: []string{"a warning"}}, nil
}

type fakeFrozen struct {
	e   *fake
	pid int
}

func (z *fakeFrozen) Take(ctx context.Context, log func(string)) (fusefs.Checkpoint, error) {
	return z.e.Take(ctx, z.pid, log)
}

func (z *fakeFrozen) Thaw() error { z.e.event("thaw %d", z.pid); return nil }

func (z *fakeFrozen) Kill() error {
	z.e.event("kill %d", z.pid)
	return syscall.Kill(z.pid, syscall.SIGKILL)
}

type fakeCheckpoint struct {
	e      *fake
	b      []byte
	m      *image.Manifest
	chunks []image.Chunk
}

func (c *fakeCheckpoint) Size() int64               { return int64(len(c.b)) }
func (c *fakeCheckpoint) Manifest() *image.Manifest { return c.m }
func (c *fakeCheckpoint) Close() error              { c.e.event("close"); return nil }

func (c *fakeCheckpoint) Stream(ctx context.Context, emit func(image.Hash, []byte) error) (root image.Hash, err error) {
	emitted := func(b []byte) error {
		if err := c.e.sleep(ctx, "chunk-delay"); err != nil {
			return err
		}
		return emit(image.HashOf(b), b)
	}
	for i, ch := range c.chunks {
		if i == len(c.chunks)/2 {
			if err := c.e.fail("stream-errno"); err != nil {
				return root, err
			}
		}
		if err := emitted(c.b[ch.Off : ch.Off+int64(ch.Len)]); err != nil {
			return root, err
		}
	}
	last := c.chunks[len(c.chunks)-1]
	for trailer := c.b[last.Off+int64(last.Len):]; len(trailer) > 0; {
		n := min(len(trailer), image.ChunkSize)
		if err := emitted(trailer[:n]); err != nil {
			return root, err
		}
		trailer = trailer[n:]
	}
	r, err := image.Open(bytes.NewReader(c.b), c.Size())
	if err != nil {
		return root, err
	}
	return r.Root(), nil
}

// fakeImage makes a valid image of about 3 MiB: every word holds its generation and address.
func fakeImage(gen int64) ([]byte, *image.Manifest, []image.Chunk, error) {
	m := imagetest.Manifest()
	heap := &m.MMs[0].VMAs[1]
	heap.End = heap.Start + 4<<20
	heap.Extents = []image.Extent{{Start: heap.Start, Len: 3<<20 + uint64(gen%7)<<12}}
	for i := range m.MMs[0].VMAs[2:] {
		v := &m.MMs[0].VMAs[2+i]
		v.Start, v.End = v.Start+1<<30, v.End+1<<30
	}
	head, l, err := image.Encode(m)
	if err != nil {
		return nil, nil, nil, err
	}
	b := make([]byte, l.HeadLen+l.DataLen, l.Total)
	copy(b, head)
	for i := l.HeadLen; i < int64(len(b)); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(gen)<<32|uint64(i))
	}
	hashes := make([]image.Hash, len(l.Chunks))
	for i, c := range l.Chunks {
		hashes[i] = image.HashOf(b[c.Off : c.Off+int64(c.Len)])
	}
	trailer, _, err := l.Trailer(hashes)
	return append(b, trailer...), m, l.Chunks, err
}

// mounted is a mount served by another process.
type mounted struct {
	t    *testing.T
	dir  string // holds mnt, store, spool, ctl, log, and out for results
	mnt  string
	cmd  *exec.Cmd
	stop io.Closer
}

// mount starts a server. It is unmounted at the end of the test.
func mount(t *testing.T) *mounted {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests mount a filesystem: run them as root")
	}
	m := &mounted{t: t, dir: t.TempDir()}
	m.mnt = filepath.Join(m.dir, "mnt")
	for _, d := range []string{"mnt", "ctl", "out"} {
		if err := os.Mkdir(filepath.Join(m.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	t.Cleanup(m.end)
	return m
}

func (m *mounted) start() {
	m.t.Helper()
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Env = append(os.Environ(), serveEnv+"="+m.dir)
	m.cmd.Stderr = os.Stderr
	in, err := m.cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.stop = in
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		m.t.Fatalf("the server said %q: %v", line, err)
	}
}

// end stops the server and says what it logged if the test failed.
func (m *mounted) end() {
	if err := m.stop.Close(); err != nil {
		m.t.Error(err)
	}
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("the server ended with %v", err)
	}
	if m.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(m.dir, "log")) // only to explain the failure
		m.t.Logf("log of the server:\n%s", b)
	}
}

// set tells the fake something.
func (m *mounted) set(name string, n int) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, "ctl", name), []byte(strconv.Itoa(n)), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// events returns how many lines of the fake's log begin with a word.
func (m *mounted) events(word string) int {
	b, err := os.ReadFile(filepath.Join(m.dir, "ctl", "events"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, word) {
			n++
		}
	}
	return n
}

// sh runs a line of shell in the folder out, with $MNT and $PID, and returns its output.
func (m *mounted) sh(pid int, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir = filepath.Join(m.dir, "out")
	cmd.Env = append(os.Environ(), "MNT="+m.mnt, "PID="+strconv.Itoa(pid), "LC_ALL=C")
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// ok runs a line that must succeed.
func (m *mounted) ok(pid int, line string) string {
	m.t.Helper()
	out, err := m.sh(pid, line)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// fails runs a line that must fail and say something.
func (m *mounted) fails(pid int, line, says string) {
	m.t.Helper()
	out, err := m.sh(pid, line)
	if err == nil {
		m.t.Fatalf("%s: succeeded\n%s", line, out)
	}
	if !strings.Contains(out, says) {
		m.t.Errorf("%s: said %q, want %q", line, out, says)
	}
}

// images lists images/.
func (m *mounted) images() []string { return strings.Fields(m.ok(0, "ls $MNT/images")) }

// out is a file in the folder out.
func (m *mounted) out(name string) string { return filepath.Join(m.dir, "out", name) }

// target starts a process to look at.
func target(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been killed by the test
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// checkImage reads an image, compares it with its hashes and returns its generation.
func checkImage(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := image.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("%s, %d bytes: %v", path, len(b), err)
	}
	if err := r.Verify(t.Context(), nil); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return int(binary.LittleEndian.Uint64(b[r.Layout.HeadLen:]) >> 32)
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}
