package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// leakRounds is how many checkpoints TestNothingStays takes; CKPTFS_SOAK makes them five times as many.
const leakRounds = 200

// spareReaders is how many goroutines that wait for requests of the kernel may be more than others are.
const spareReaders = 4

// openPacks is how many packs and parts of its index a store keeps open, at most.
const openPacks = 64 + 16

// daemonState is what the process behind a mount has.
type daemonState struct {
	goroutines int
	files      []string // what its descriptors are of, sorted
	packs      int      // and how many are packs and parts of the index, of which some are kept open
	children   []string
	memory     int64 // bytes of the heap that are in use
}

// daemonNow asks the mount and looks at its process.
func daemonNow(t *testing.T, m *harness.Mount) daemonState {
	t.Helper()
	var said struct {
		Mount struct {
			PID, Goroutines, Descriptors int
			Heap                         int64
		}
	}
	out := harness.Must(t, harness.Binary(), "stats", "--mount", "--json", "--store", m.Store).Stdout
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid := said.Mount.PID
	if pid != m.Daemon() || said.Mount.Goroutines == 0 {
		t.Fatalf("the mount is process %d, stats says %s", m.Daemon(), out)
	}
	s := daemonState{goroutines: said.Mount.Goroutines, memory: said.Mount.Heap}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("the descriptors of process %d: %v", pid, err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil {
			continue // it was closed since
		}
		if strings.HasPrefix(to, filepath.Join(m.Store, "packs")) || strings.HasPrefix(to, filepath.Join(m.Store, "index")) {
			s.packs++
			continue
		}
		if strings.HasPrefix(to, m.Store) {
			to = filepath.Dir(to) // a spool has another name each time
		}
		kind, _, _ := strings.Cut(to, "[") // pipe:[7], socket:[7]
		s.files = append(s.files, kind)
	}
	slices.Sort(s.files)
	s.children = strings.Fields(string(read(t, fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))))
	return s
}

// TestNothingStays takes many checkpoints through one mount, some by several readers at once, some given up half way, some
// that fail, with reads of stored images and restores that fail between them. After that the mount has no more goroutines,
// descriptors, children and memory than after the first few.
func TestNothingStays(t *testing.T) {
	rounds := leakRounds
	if os.Getenv("CKPTFS_SOAK") != "" {
		rounds *= 5
	}
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--keep-last", "3", "--keep-within", "0")
	r := harness.Start(t, "ram", "4")
	refused := harness.Start(t, "refuse", "pidfd")
	leakSome(t, m, r, refused, 16)
	before := leakQuiet(t, m)
	leakSome(t, m, r, refused, rounds)
	var after daemonState
	defer func() { t.Logf("after 16:  %+v\nafter %d more: %+v", before, rounds, after) }()
	harness.Eventually(t, "the mount to be as it was", func() bool {
		after = leakQuiet(t, m)
		return after.goroutines <= before.goroutines+spareReaders && slices.Equal(after.files, before.files) && len(after.children) == len(before.children)
	})
	if after.packs > openPacks+before.packs {
		t.Errorf("%d packs are open, there were %d", after.packs, before.packs)
	}
	if after.memory > before.memory+8<<20 {
		t.Errorf("the mount uses %d bytes, it used %d", after.memory, before.memory)
	}
	r.Pass(false)
	refused.Alive()
}

// leakQuiet waits until nothing is under way in the background, which is what stays equal for a while.
func leakQuiet(t *testing.T, m *harness.Mount) (s daemonState) {
	t.Helper()
	same := 0
	harness.Eventually(t, "the mount to be idle", func() bool {
		now := daemonNow(t, m)
		if now.goroutines == s.goroutines && slices.Equal(now.files, s.files) {
			same++
		} else {
			same = 0
		}
		s = now
		time.Sleep(20 * time.Millisecond)
		return same == 10
	})
	return s
}

// leakSome takes n checkpoints, or what should be one.
func leakSome(t *testing.T, m *harness.Mount, r, refused *harness.Program, n int) {
	t.Helper()
	for i := 0; i < n; {
		switch i % 8 {
		case 0: // by several at once
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					if c := harness.Run(t, "cat", m.Image(r)); c.Code != 0 || len(c.Stdout) < 4<<20 {
						t.Errorf("exit code %d after %d bytes: %s", c.Code, len(c.Stdout), c.Stderr)
					}
				})
			}
			all.Wait()
			i += 2
		case 3: // given up half way
			f, err := os.Open(m.Image(r))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, f, 1<<20); err != nil {
				t.Error(err)
			}
			f.Close()
		case 4: // refused
			if _, err := os.ReadFile(m.Image(refused)); err == nil {
				t.Error("a checkpoint that is refused was taken")
			}
		case 5: // a restore that fails: its pid is taken
			names := m.Images()
			if c := harness.Run(t, "cp", filepath.Join(m.Dir, "images", names[len(names)-1], "image"), m.Restore("again")); c.Code == 0 {
				t.Error("what runs was restored")
			}
		case 6: // one that is cut off
			if err := os.WriteFile(m.Restore("cut"), read(t, m.Image(r))[:2<<20], 0o600); err != nil {
				t.Error(err)
			}
		case 7: // a process that is gone, and a look at what can be read without a checkpoint
			if _, err := os.ReadFile(filepath.Join(m.Dir, "ckpt", "999999999", "image")); err == nil {
				t.Error("there is a checkpoint of nobody")
			}
			read(t, m.Of(r, "explain"))
			read(t, m.Of(r, "info"))
		default:
			read(t, m.Image(r))
		}
		i++
	}
}
