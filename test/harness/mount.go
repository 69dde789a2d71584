package harness

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Mount is a mounted ckptfs of its own, served by the built binary in another process.
type Mount struct {
	Dir, Store string
	flags      []string
	t          testing.TB
}

// NewMount mounts a ckptfs with an empty store; it is unmounted when the test ends.
func NewMount(t testing.TB) *Mount {
	t.Helper()
	return NewMountAt(t, join(TempDir(t), "store"))
}

// NewMountAt is NewMount with the store in a given folder, which need not exist, and with more flags.
func NewMountAt(t testing.TB, store string, flags ...string) *Mount {
	t.Helper()
	m := &Mount{Dir: join(TempDir(t), "mnt"), Store: store, flags: flags, t: t}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.mount()
	t.Cleanup(m.Unmount)
	return m
}

func (m *Mount) mount() {
	m.t.Helper()
	Must(m.t, append([]string{run.binary, "mount", m.Dir, "--store", m.Store}, m.flags...)...)
	if !exists(join(m.Dir, "ckpt")) {
		m.t.Fatalf("ckptfs mount came back, but there is no %s/ckpt", m.Dir)
	}
}

// Unmount ends the mount, if it is there; the daemon has to end with it.
func (m *Mount) Unmount() {
	if len(mountsBelow(m.Dir)) == 0 {
		return
	}
	if r := Run(m.t, run.binary, "umount", m.Dir); r.Code != 0 {
		m.t.Error(r)
	}
	if left := mountsBelow(m.Dir); len(left) > 0 {
		m.t.Errorf("still mounted after umount: %v", left)
	}
}

// Image returns the path that takes a checkpoint of the program when it is read.
func (m *Mount) Image(p *Program) string { return m.Of(p, "image") }

// Of returns the path of a file of the program's directory in the mount.
func (m *Mount) Of(p *Program, name string) string {
	return join(m.Dir, "ckpt", fmt.Sprint(p.PID), name)
}

// Restore returns the path below restore/.
func (m *Mount) Restore(name string) string { return join(m.Dir, "restore", name) }

// Images lists the names of the checkpoints that the store holds.
func (m *Mount) Images() []string {
	m.t.Helper()
	entries, err := os.ReadDir(join(m.Dir, "images"))
	if err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// WaitImages waits until the store holds n checkpoints. One appears when its last byte is
// safe, which may be a little after its reader has ended.
func (m *Mount) WaitImages(n int) []string {
	m.t.Helper()
	var names []string
	if !until(func() bool { names = m.Images(); return len(names) == n }) {
		m.t.Fatalf("images/ holds %q, not %d", names, n)
	}
	return names
}

// Status returns what NAME.status says after a restore.
func (m *Mount) Status(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.Restore(name + ".status"))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// Log returns NAME.log, "" if there is none.
func (m *Mount) Log(name string) string {
	b, err := os.ReadFile(m.Restore(name + ".log"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// Say fails the test unless text holds every word.
func Say(t testing.TB, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			t.Errorf("%s does not say %q: %q", what, w, text)
		}
	}
}

// Eventually fails the test unless cond comes to hold.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	from := time.Now()
	if !until(cond) {
		t.Fatalf("%s: not within %v", what, time.Since(from).Round(time.Second))
	}
}

// KillDaemon kills the process behind the mount without a chance to clean up.
func (m *Mount) KillDaemon() {
	m.t.Helper()
	daemons := m.daemons()
	if len(daemons) == 0 {
		m.t.Fatal("no daemon serves the mount")
	}
	if err := killAll(m.daemons); err != nil {
		m.t.Fatal(err)
	}
}

// daemons lists the ckptfs processes that serve this mount.
func (m *Mount) daemons() []int {
	return slices.DeleteFunc(running(run.binary), func(p int) bool { return !strings.Contains(commandOf(p), m.Dir) })
}

// Again mounts once more at the same place, with the same store.
func (m *Mount) Again() {
	m.t.Helper()
	m.mount()
}

// Daemon returns the pid of the process behind the mount.
func (m *Mount) Daemon() int {
	m.t.Helper()
	d := m.daemons()
	if len(d) != 1 {
		m.t.Fatalf("%d processes serve %s: %v", len(d), m.Dir, d)
	}
	return d[0]
}
