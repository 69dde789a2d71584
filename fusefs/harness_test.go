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
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/store"
)

// serveEnv makes the test binary serve a mount below the folder it names: a process must
// never use a mount that it serves itself.
const serveEnv = "FUSEFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		store.SpareProc() // as ckptfs does
		if err := serve(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// A shell that started us in the background has left SIGINT ignored, and so would the
	// commands have it that a test interrupts. What is caught here is back at its default there.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		os.Exit(130)
	}()
	os.Exit(m.Run())
}

// serve mounts dir/mnt with a store in dir/store and a fake engine that is told what to do
// by files in dir/ctl, until standard input ends. ctl/keep-last is its policy.
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
	e := &fake{ctl: filepath.Join(dir, "ctl")}
	srv, err := fusefs.Mount(fusefs.Options{Dir: filepath.Join(dir, "mnt"), Source: "test", Engine: e, Keep: store.Policy{KeepLast: e.number("keep-last")},
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

// mounted is a mount served by another process.
type mounted struct {
	t    testing.TB
	dir  string // holds mnt, store, spool, ctl, log, and out for results
	mnt  string
	cmd  *exec.Cmd
	stop io.Closer
}

// mount starts a server. It is unmounted at the end of the test.
func mount(t testing.TB) *mounted {
	t.Helper()
	return mountKeeping(t, 0)
}

// mountKeeping starts a server that keeps the last n images of each process.
func mountKeeping(t testing.TB, n int) *mounted {
	t.Helper()
	m := prepare(t, n)
	m.start()
	t.Cleanup(m.end)
	return m
}

// prepare makes the folders of a mount that keeps the last n images of each process.
func prepare(t testing.TB, n int) *mounted {
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
	m.set("keep-last", n)
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

// logged reports whether the server's log says something.
func (m *mounted) logged(says string) bool {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.Contains(string(b), says)
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
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
