package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestCloneSession restores a program whose session is led by another one, which takes a detour.
func TestCloneSession(t *testing.T) {
	m := harness.NewMount(t)
	dir := harness.TempDir(t)
	c := exec.Command(harness.Fixture(t, "clones"), filepath.Join(dir, "ready"), filepath.Join(dir, "result"), filepath.Join(dir, "go"))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r := harness.StartWith(t, dir, c)
	r.WaitReady()
	s := store(t, m, r)
	s.on()
	for range 3 {
		if s.restore(r) == 0 {
			t.Error("no memory is shared")
		}
		r.Alive()
		r.Kill()
	}
	s.restore(r)
	r.Pass(true)
}

// TestTemplateCommand restores an image of a mount that has a template by the command.
func TestTemplateCommand(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "clones")
	before := r.Look()
	s := store(t, m, r)
	path := filepath.Join(s.dir, "image")
	uses := func() int {
		return strings.Count(string(read(t, filepath.Join(m.Store, "mount.log"))), ": restored, root pid "+itoa(r.PID))
	}
	for i, c := range []struct {
		on     string
		flags  []string
		shares int
	}{{"on", nil, 1}, {"on", []string{"-v", "--pidfile", filepath.Join(r.Dir, "pidfile")}, 2}, {"on", []string{"--out", filepath.Join(r.Dir, "other")}, 2}, {"off", []string{"--out", filepath.Join(r.Dir, "other")}, 2}} {
		write(t, s.template(), []byte(c.on))
		r.Again()
		got := harness.Must(t, append([]string{harness.Binary(), "restore", path}, c.flags...)...)
		if got.Stdout != itoa(r.PID)+"\n" {
			t.Errorf("it prints %q, want %d", got.Stdout, r.PID)
		}
		if i == 1 {
			harness.Say(t, "-v", got.Stderr, "are shared with the template")
			harness.Say(t, "the pidfile", string(read(t, filepath.Join(r.Dir, "pidfile"))), itoa(r.PID))
		}
		r.Restored()
		if n := uses(); n != c.shares {
			t.Errorf("restore %d with flags %q: the mount has made %d, want %d", i, c.flags, n, c.shares)
		}
		r.Same(before, "after a restore by the command")
		r.Kill()
	}
	write(t, s.template(), []byte("on"))
	r.Again()
	harness.Must(t, harness.Binary(), "restore", path)
	r.Restored()
	got := harness.Run(t, harness.Binary(), "restore", path)
	if got.Code != 4 || !strings.Contains(got.Stderr, "pid "+itoa(r.PID)+" is in use") {
		t.Errorf("a second restore: %v", got)
	}
	r.Pass(true)
}
