package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// lazyStatus is what restore/lazy/NAME.status says.
type lazyStatus struct {
	State string
	Root  int
	Error string
	Lazy  struct {
		Server                 int
		PIDs                   []int
		Missing, Total, Failed int64
		Done                   bool
	}
}

// lazily returns what a mount says of a lazy restore, once it has heard of its page server.
func lazily(t *testing.T, m *harness.Mount, name string) (s lazyStatus) {
	t.Helper()
	harness.Eventually(t, "the status tells of memory", func() bool {
		if err := json.Unmarshal([]byte(m.Status("lazy/"+name)), &s); err != nil {
			t.Fatal(err)
		}
		return s.Lazy.Server != 0 || s.Error != ""
	})
	if s.State != "restored" {
		t.Fatalf("restore/lazy/%s: %s", name, m.Status("lazy/"+name))
	}
	return s
}

// keptIn takes a checkpoint of a program through a mount, ends it, and returns the image's path.
func keptIn(t *testing.T, m *harness.Mount, r *harness.Program) string {
	t.Helper()
	harness.Must(t, "cp", m.Image(r), "/dev/null")
	name := m.WaitImages(1)[0]
	r.Kill()
	r.Again()
	return filepath.Join(m.Dir, "images", name, "image")
}

// TestLazyMount restores lazily through a mount: by copying, and by a link to the store. The mount does not end
// before all memory has come.
func TestLazyMount(t *testing.T) {
	for _, tc := range []struct{ name, line string }{{"copied", "cat %s > %s"}, {"linked", "cp %s %s"}} {
		t.Run(tc.name, func(t *testing.T) {
			m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--lazy-rate", "1MiB")
			r := harness.Start(t, "lazymem", "60", "500", "1")
			image := keptIn(t, m, r)
			if got := harness.Shell(t, fmt.Sprintf(tc.line, image, m.Restore("lazy/f"))); got.Code != 0 {
				t.Fatal(got)
			}
			r.Restored()
			s := lazily(t, m, "f")
			if s.Root != r.PID || s.Lazy.Missing < 30<<20 || s.Lazy.Done || len(s.Lazy.PIDs) != 1 {
				t.Errorf("while memory is to come: %+v", s)
			}
			got := harness.Run(t, harness.Binary(), "umount", m.Dir)
			if got.Code == 0 {
				t.Fatalf("the mount has ended: %v", got)
			}
			harness.Say(t, "umount", got.Stderr, itoa(r.PID), "restore/lazy/f", "MiB to come", "umount --wait")
			r.Alive()
			harness.Must(t, "rm", "-r", filepath.Dir(image)) // who reads it reads on
			harness.Must(t, harness.Binary(), "gc", "--store", m.Store)
			harness.Must(t, harness.Binary(), "umount", "--wait", m.Dir)
			served(t, s.Lazy.Server)
			r.Pass(true)
		})
	}
}

// TestLazyMountEnds ends the mount with SIGTERM: its process stays until all memory has come.
func TestLazyMountEnds(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--lazy-rate", "1MiB")
	r := harness.Start(t, "lazymem", "60", "500", "1")
	image := keptIn(t, m, r)
	harness.Must(t, "cp", image, m.Restore("lazy/f"))
	s, daemon := lazily(t, m, "f"), m.Daemon()
	signal(t, daemon, "TERM")
	harness.Eventually(t, "the daemon ends", func() bool { return !harness.Exists(daemon) })
	served(t, s.Lazy.Server)
	log := string(read(t, filepath.Join(m.Store, "mount.log")))
	harness.Say(t, "the log", log, "waiting for memory", itoa(r.PID), "all memory has come")
	r.Pass(true)
}

// TestLazyDaemonKilled kills the process that reads the store for a lazy program: that gets SIGBUS where its memory
// cannot be had, and another one, whose image was copied, goes on.
func TestLazyDaemonKilled(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--lazy-rate", "1MiB")
	r := harness.Start(t, "lazymem", "60", "0", "1")
	other := harness.Start(t, "lazymem", "60", "0", "2")
	copied := other.Dump("--kill")
	other.WaitGone()
	other.Again()
	harness.Must(t, "cp", keptIn(t, m, r), m.Restore("lazy/f"))
	harness.Must(t, "cp", copied, m.Restore("lazy/g"))
	s, second := lazily(t, m, "f"), lazily(t, m, "g")
	m.KillDaemon()
	goAhead(t, r)
	goAhead(t, other)
	if !endsWithout(t, r, "fail") {
		t.Error("the program has memory that nobody can have brought")
	}
	harness.Eventually(t, "the page server ends", func() bool { return !harness.Exists(s.Lazy.Server) })
	harness.Say(t, "the log", pagesLog(t, s.Lazy.Server), fmt.Sprintf("pid %d: its memory at 0x", r.PID), "does not give it any more", "SIGBUS")
	other.Finish()
	served(t, second.Lazy.Server)
	unix.Unmount(m.Dir, unix.MNT_DETACH) // nobody serves it
}

// TestLazyStoreDamaged reads of a store that is damaged meanwhile.
func TestLazyStoreDamaged(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--lazy-rate", "1MiB")
	r := harness.Start(t, "lazymem", "60", "0", "1")
	image := keptIn(t, m, r)
	harness.Must(t, "cp", image, m.Restore("lazy/f"))
	s := lazily(t, m, "f")
	spoilPacks(t, m.Store)
	goAhead(t, r)
	if !endsWithout(t, r, "fail") {
		t.Error("it has passed, although the store is damaged that its memory comes from")
	}
	harness.Eventually(t, "the page server ends", func() bool { return !harness.Exists(s.Lazy.Server) })
	harness.Say(t, "NAME.log", m.Log("lazy/f"), "cannot be had", "SIGBUS")
	pagesLog(t, s.Lazy.Server)
}

// spoilPacks overwrites the middle of all packs of a store.
func spoilPacks(t *testing.T, store string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(store, "packs", "*", "*"))
	if more, _ := filepath.Glob(filepath.Join(store, "packs", "*")); len(files) == 0 {
		files = more
	}
	if err != nil || len(files) == 0 {
		t.Fatalf("no packs in %s: %v", store, err)
	}
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			continue // a folder
		}
		n := size(t, name)
		if _, err := f.WriteAt(make([]byte, n/2), n/4); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

// TestLazyRedis brings a redis with its data back lazily and asks it for its keys.
func TestLazyRedis(t *testing.T) {
	m := harness.NewMountAt(t, filepath.Join(harness.TempDir(t), "store"), "--lazy-rate", "8MiB")
	r := startRedis(t, redisRun{mib: 64, rate: 200})
	harness.Must(t, "cp", m.Image(r), "/dev/null")
	name := m.WaitImages(1)[0]
	r.Kill()
	said := restoreRedis(t, m, r, name, "lazy/"+name)
	t.Log(said)
	served(t, lazily(t, m, name).Lazy.Server)
}

// TestLazyFrozen freezes a program that is still lazy, which another process serves, and takes a checkpoint
// of it by a mount. It is whole.
func TestLazyFrozen(t *testing.T) {
	m := harness.NewMount(t)
	r, image := dumped(t, "60")
	server := restoreLazily(t, r, image, "--lazy-rate", "1MiB")
	state := m.Of(r, "state")
	if got := harness.Shell(t, "echo frozen > "+state); got.Code != 0 {
		t.Fatal(got)
	}
	if said := read(t, m.Of(r, "explain")); len(said) > 0 {
		t.Errorf("explain of a lazy program: %s", said)
	}
	if estimate := size(t, m.Image(r)); estimate < size(t, image)*9/10 {
		t.Errorf("the estimate of a lazy program is %d bytes; its image had %d", estimate, size(t, image))
	}
	again := filepath.Join(harness.TempDir(t), "image")
	harness.Must(t, "cp", m.Image(r), again)
	served(t, server)
	if got := harness.Shell(t, "echo killed > "+state); got.Code != 0 {
		t.Fatal(got)
	}
	r.WaitGone()
	r.Restore(again)
	r.Pass(true)
}
