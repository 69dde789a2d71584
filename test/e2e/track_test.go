package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/test/harness"
)

// unchanged is what the log of an image says if the one before was made use of.
const unchanged = "bytes are as they were at the checkpoint before"

// infoOf is what ckpt/PID/info says, as far as it matters here.
type infoOf struct {
	Last *struct {
		Name string `json:"name"`
	} `json:"last_checkpoint"`
	Track struct {
		Mode      string `json:"mode"`
		Active    bool   `json:"active"`
		Processes int    `json:"processes"`
		Bytes     int64  `json:"bytes"`
		Unchanged int64  `json:"unchanged"`
		Copied    bool   `json:"copied"`
	} `json:"track"`
}

func readInfo(t *testing.T, m *harness.Mount, p *harness.Program) (in infoOf) {
	t.Helper()
	b, err := os.ReadFile(m.Of(p, "info"))
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// takeStored takes a checkpoint through a mount that only goes to the store: reading its end waits for that. It
// returns its name.
func takeStored(t *testing.T, m *harness.Mount, p *harness.Program) string {
	t.Helper()
	readEnd(t, m, p)
	return readInfo(t, m, p).Last.Name
}

func readEnd(t *testing.T, m *harness.Mount, p *harness.Program) {
	t.Helper()
	if r := harness.Run(t, "tail", "-c1", m.Image(p)); r.Code != 0 {
		t.Fatalf("%v\n%s", r, read(t, filepath.Join(m.Store, "mount.log")))
	}
}

// logOf returns the log of a stored image.
func logOf(t *testing.T, m *harness.Mount, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.Dir, "images", name, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// memoryOf is the private memory in an image: by process and page, what is there.
func memoryOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := image.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	m := r.Manifest
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			v := &m.MMs[i].VMAs[j]
			for k, e := range v.Extents {
				b := make([]byte, e.Len)
				if _, err := r.ReadAt(b, r.Layout.VMAOffset(i, j, k)); err != nil {
					t.Fatal(err)
				}
				for at := uint64(0); at < e.Len; at += 4096 {
					out[fmt.Sprintf("mm %d %x %s", i, e.Start+at, v.Name)] = b[at : at+4096]
				}
			}
			for _, g := range v.Guards {
				out[fmt.Sprintf("mm %d guard %x-%x", i, g.Start, g.Start+g.Len)] = nil
			}
		}
	}
	return out
}

// sameMemory compares what two images hold. What differs in the stacks of a stopped process is none of its doing.
func sameMemory(t *testing.T, tracked, full string) {
	t.Helper()
	a, b := memoryOf(t, tracked), memoryOf(t, full)
	for k, page := range b {
		if got, ok := a[k]; !ok || !bytes.Equal(got, page) {
			at := 0
			for at < min(len(got), len(page)) && got[at] == page[at] {
				at++
			}
			t.Fatalf("%s differs at %d: it is in the tracked image: %v; %x, should be %x; %d and %d pages", k, at, ok, got[at:min(at+16, len(got))],
				page[at:min(at+16, len(page))], len(a), len(b))
		}
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			t.Fatalf("%s is only in the tracked image", k)
		}
	}
}

// compareStopped stops the program and compares a tracked image of it with one that is not.
func compareStopped(t *testing.T, m *harness.Mount, p *harness.Program) (log string) {
	t.Helper()
	var tree []int
	harness.Eventually(t, "it stops", func() bool {
		tree = p.Tree()
		still := true
		for _, pid := range tree {
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
			s := harness.State(pid)
			still = still && (s == 'T' || s == 'Z')
		}
		return still && slices.Equal(tree, p.Tree())
	})
	name := takeStored(t, m, p)
	full := p.Dump()
	sameMemory(t, filepath.Join(m.Dir, "images", name, "image"), full)
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	for _, pid := range tree {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	return logOf(t, m, name)
}

// TestTracked has a program change its memory at random in every way between checkpoints that only read what it
// has written, and compares with full ones. CKPTFS_TRACK is for how long.
func TestTracked(t *testing.T) {
	seed := rand.Uint64N(1 << 40)
	if s := os.Getenv("CKPTFS_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CKPTFS_SEED=%d", seed)
	long := 6 * time.Second
	if s := os.Getenv("CKPTFS_TRACK"); s != "" {
		var err error
		if long, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--track", "on", "--keep-last", "4", "--keep-within", "0")
	p := harness.Start(t, "scribble", fmt.Sprint(seed))
	rng := rand.New(rand.NewPCG(seed, 1))
	referred, copied := 0, 0
	for began, n := time.Now(), 0; time.Since(began) < long; n++ {
		p.Alive()
		for range rng.IntN(3) { // the base moves on while it runs
			readEnd(t, m, p)
			time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		}
		log := compareStopped(t, m, p)
		if strings.Contains(log, unchanged) {
			referred++
		}
		if readInfo(t, m, p).Track.Copied {
			copied++
		}
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
	}
	t.Logf("%d images referred to the one before, %d without a snapshot", referred, copied)
	if referred == 0 {
		t.Error("no checkpoint made use of the one before")
	}
	name := takeStored(t, m, p)
	p.Kill()
	harness.Must(t, "cp", filepath.Join(m.Dir, "images", name, "image"), m.Restore("again"))
	p.Restored()
	p.Pass(true)
}

// act has the program writes do something.
func act(t *testing.T, p *harness.Program, n *int, what string) {
	t.Helper()
	*n++
	if err := os.WriteFile(filepath.Join(p.Dir, "tmp"), []byte(what), 0o666); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("ready.%d", *n)
	if err := os.Rename(filepath.Join(p.Dir, "tmp"), filepath.Join(p.Dir, file)); err != nil {
		t.Fatal(err)
	}
	p.WaitFile(file + ".done")
}

// trackedAreas counts the mappings of a process whose writes somebody tracks.
func trackedAreas(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmFlags:") && strings.Contains(line, " uw") {
			n++
		}
	}
	return n
}

// TestTrackLost has a tracked program do what tracking cannot follow: the next image is right, full if need be.
func TestTrackLost(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--track", "on")
	p := harness.Start(t, "writes")
	n := 0
	full := func(when string) {
		t.Helper()
		if log := compareStopped(t, m, p); strings.Contains(log, unchanged) {
			t.Errorf("%s: the image refers to the one before:\n%s", when, log)
		}
	}
	partly := func(when string, atLeast int64) {
		t.Helper()
		compareStopped(t, m, p)
		if in := readInfo(t, m, p).Track; in.Unchanged < atLeast<<20 || !in.Active {
			t.Errorf("%s: %d of %d bytes were unchanged, want at least %d MiB", when, in.Unchanged, in.Bytes, atLeast)
		}
	}
	full("at first")
	partly("idle", 15)
	if !readInfo(t, m, p).Track.Copied {
		t.Error("an idle program was snapshotted")
	}
	act(t, p, &n, "write 50")
	partly("after 50 writes", 14)
	act(t, p, &n, "remap")
	partly("after a new mapping", 14)
	act(t, p, &n, "write 4096")
	partly("after writes everywhere", 0)
	partly("idle again", 15)
	act(t, p, &n, "fork")
	partly("after a fork", 14)
	partly("with a child", 30)
	if got := readInfo(t, m, p).Track.Processes; got != 2 {
		t.Errorf("%d processes are tracked, not 2", got)
	}
	act(t, p, &n, "exec")
	partly("after exec", 0)
	act(t, p, &n, "write 3")
	partly("and after that", 0)
	partly("tracked again", 30)
	m.KillDaemon()
	m.Again()
	if left := trackedAreas(t, p.PID); left != 0 {
		t.Errorf("%d mappings are still tracked although the daemon is dead", left)
	}
	act(t, p, &n, "write 200")
	full("after the death of the daemon")
	partly("and again", 30)
	harness.Shell(t, "echo off > "+m.Of(p, "track"))
	if left := trackedAreas(t, p.PID); left != 0 {
		t.Errorf("%d mappings are still tracked although that is off", left)
	}
	full("off")
	p.Pass(false)
}

// TestTrackAuto has a program tracked since it is checkpointed again.
func TestTrackAuto(t *testing.T) {
	m := harness.NewMount(t)
	p := harness.Start(t, "writes")
	takeStored(t, m, p)
	if in := readInfo(t, m, p).Track; in.Active || in.Mode != "auto" || trackedAreas(t, p.PID) != 0 {
		t.Errorf("after one checkpoint: %+v", in)
	}
	takeStored(t, m, p)
	if in := readInfo(t, m, p).Track; !in.Active || in.Processes != 1 || trackedAreas(t, p.PID) == 0 {
		t.Errorf("after two checkpoints: %+v", in)
	}
	takeStored(t, m, p)
	if in := readInfo(t, m, p).Track; in.Unchanged < 15<<20 || !in.Copied {
		t.Errorf("after three checkpoints: %+v", in)
	}
	r := harness.Run(t, "bash", "-c", "echo maybe > "+m.Of(p, "track"))
	harness.Say(t, "a wrong word", r.Stderr, "Invalid argument")
	harness.Say(t, "the mount's log", string(read(t, filepath.Join(m.Store, "mount.log"))), `track takes auto, on or off, not "maybe"`)
	m.Unmount()
	if left := trackedAreas(t, p.PID); left != 0 {
		t.Errorf("%d mappings are still tracked although the mount has ended", left)
	}
	p.Pass(false)
}

// TestTrackTwice has two mounts track one program: the second one cannot, and takes full checkpoints.
func TestTrackTwice(t *testing.T) {
	dir := harness.TempDir(t)
	a := harness.NewMountAt(t, filepath.Join(dir, "a"), "--track", "on")
	b := harness.NewMountAt(t, filepath.Join(dir, "b"), "--track", "on")
	p := harness.Start(t, "writes")
	n := 0
	for i := range 3 {
		compareStopped(t, a, p)
		act(t, p, &n, "write 10")
		if log := compareStopped(t, b, p); i == 0 { // later it is not tried again
			harness.Say(t, "the log of the second", log, "its writes cannot be tracked", "device or resource busy")
		}
		act(t, p, &n, "write 10")
	}
	if in := readInfo(t, a, p).Track; in.Unchanged < 14<<20 {
		t.Errorf("the first one: %+v", in)
	}
	p.Pass(false)
}

// TestTrackKilled kills the process behind a mount at random moments of checkpoints of a program that it tracks, which
// notices nothing.
func TestTrackKilled(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--track", "on")
	p := harness.Start(t, "scribble", "7")
	for range soak(t, 8) {
		if rand.IntN(2) == 0 {
			readEnd(t, m, p) // the next one has something to refer to
		}
		ctx, cancel := context.WithCancel(t.Context())
		c := exec.CommandContext(ctx, "tail", "-c1", m.Image(p))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		m.KillDaemon()
		cancel()
		_ = c.Wait() // whatever it got
		p.Alive()
		if left := trackedAreas(t, p.PID); left != 0 {
			t.Fatalf("%d mappings are still tracked", left)
		}
		m.Again()
	}
	compareStopped(t, m, p)
	p.Pass(false)
}
