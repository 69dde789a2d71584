package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// chunkCount is a number that is only about right while a store is open, see store.Stats.
var chunkCount = regexp.MustCompile(`[0-9]+ chunks|"Chunks": [0-9]+`)

// storeCommands runs the commands that only read, each as text and as JSON, and returns what they said.
func storeCommands(t *testing.T, store string, flags ...string) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, argv := range [][]string{{"ls"}, {"ls", "--json"}, {"stats"}, {"stats", "--json"}, {"verify"}, {"verify", "--json"}, {"verify", "--read-data"}} {
		r := harness.Must(t, append(append([]string{harness.Binary()}, append(argv, "--store", store)...), flags...)...)
		said[strings.Join(argv, " ")] = chunkCount.ReplaceAllString(r.Stdout, "N chunks")
	}
	return said
}

// TestStoreBesideMount: ls, stats, verify and gc work on a store that a mount has, and say just what
// they say without one.
func TestStoreBesideMount(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "counter")
	var names []string
	for range 4 {
		harness.Must(t, "cat", m.Image(r))
	}
	names = m.WaitImages(4)
	harness.Must(t, harness.Binary(), "gc", "--store", m.Store) // so that nothing changes in the background
	beside := storeCommands(t, m.Store)
	for _, name := range names {
		if !strings.Contains(beside["ls"], name) {
			t.Errorf("ls does not list %s:\n%s", name, beside["ls"])
		}
	}
	m.Unmount()
	for what, text := range storeCommands(t, m.Store) {
		if beside[what] != text {
			t.Errorf("%s beside a mount:\n%swithout one:\n%s", what, beside[what], text)
		}
	}
	if _, err := os.Lstat(filepath.Join(m.Store, "control")); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}

	// What changes something is done by the mount, which logs it.
	m.Again()
	gc := harness.Must(t, harness.Binary(), "gc", "--store", m.Store, "--keep-last", "1", "--keep-within", "0")
	harness.Say(t, "gc", gc.Stdout, "3 checkpoints")
	harness.Say(t, "gc", gc.Stderr, "removed "+names[0])
	if left := m.Images(); len(left) != 1 {
		t.Errorf("images/ holds %v after gc", left)
	}
	harness.Say(t, "mount.log", string(read(t, filepath.Join(m.Store, "mount.log"))), "image "+names[0]+" removed", "asked for by pid")
	if two := harness.Run(t, harness.Binary(), "mount", harness.TempDir(t), "--store", m.Store); two.Code != 6 {
		t.Errorf("a second mount on the store: %v", two)
	} else {
		harness.Say(t, "mount", two.Stderr, "is in use by process "+itoa(m.Daemon()))
	}
}

// TestStoreOfDeadMount: a mount that was killed leaves a socket that nobody listens on.
func TestStoreOfDeadMount(t *testing.T) {
	m := harness.NewMount(t)
	m.KillDaemon()
	if fi, err := os.Lstat(filepath.Join(m.Store, "control")); err != nil || fi.Mode()&os.ModeSocket == 0 || fi.Mode().Perm() != 0o600 {
		t.Fatalf("the socket is %v, %v", fi, err)
	}
	storeCommands(t, m.Store)
	m.Again()
	storeCommands(t, m.Store)
}

// TestStoreBesideSealedMount: who asks a mount for an encrypted store has to have its key.
func TestStoreBesideSealedMount(t *testing.T) {
	dir := harness.TempDir(t)
	key, other := filepath.Join(dir, "key"), filepath.Join(dir, "other")
	harness.Must(t, harness.Binary(), "key", "new", key)
	harness.Must(t, harness.Binary(), "key", "new", other)
	m := harness.NewMountAt(t, filepath.Join(dir, "store"), "--key-file", key)
	r := harness.Start(t, "counter")
	harness.Must(t, "cat", m.Image(r))
	m.WaitImages(1)
	errors := func() (said []string) {
		for _, flags := range [][]string{nil, {"--key-file", other}} {
			for _, what := range []string{"ls", "gc"} {
				r := harness.Run(t, append([]string{harness.Binary(), what, "--store", m.Store}, flags...)...)
				if r.Code == 0 || r.Stdout != "" {
					t.Errorf("without the key: %v", r)
				}
				said = append(said, itoa(r.Code)+" "+r.Stderr)
			}
		}
		return said
	}
	beside := errors()
	if said := storeCommands(t, m.Store, "--key-file", key); !strings.Contains(said["ls"], "counter") {
		t.Errorf("ls with the key: %q", said["ls"])
	}
	m.Unmount()
	for i, s := range errors() {
		if s != beside[i] {
			t.Errorf("beside a mount %q, without one %q", beside[i], s)
		}
	}
}

// TestStoreOfStoppedMount: a mount that does not answer is named, and a command can be interrupted.
func TestStoreOfStoppedMount(t *testing.T) {
	m := harness.NewMount(t)
	pid := m.Daemon()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(harness.Binary(), "stats", "--store", m.Store)
	harness.RunSignalled(t, c, 300_000_000, unix.SIGINT)
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	harness.Must(t, harness.Binary(), "stats", "--store", m.Store)
}
