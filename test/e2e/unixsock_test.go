package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestUnixOutside has a socket whose other end is in no process of the tree: refused, or by policy
// restored as if that end had been closed.
func TestUnixOutside(t *testing.T) {
	r := harness.Start(t, "unixsock", "outside")
	got := fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "connected to pid", "outside the tree", "--policy unix=disconnect")
	if got.Code != 1 {
		t.Errorf("the exit code of a refusal is 1: %v", got)
	}
	image := r.Dump("--policy", "unix=disconnect")
	harness.Say(t, "show", harness.Must(t, harness.Binary(), "show", image).Stdout, "connected to pid", "end of file")
	r.Pass(false)
	r.WaitGone()
	r.Restore(image)
	r.Pass(true)
}

// TestUnixFlightRefused has an epoll instance in a message, and no process has it open. Only the freeze
// shows that.
func TestUnixFlightRefused(t *testing.T) {
	r := harness.Start(t, "refuse", "unixepoll")
	before := r.Look()
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "fd 5", "eventpoll", "under way in socket:[", "no process has it open")
	r.Same(before, "after a refused checkpoint")
	r.Pass(false)
}

// TestUnixExplain has explain say nothing of what is kept, and change nothing.
func TestUnixExplain(t *testing.T) {
	for _, what := range []string{"pairs", "processes", "servers", "flight"} {
		r := harness.Start(t, "unixsock", what)
		before := r.Look()
		if got := harness.Must(t, harness.Binary(), "explain", itoa(r.PID)); got.Stdout != "" {
			t.Errorf("explain of %s says %q", what, got.Stdout)
		}
		r.Same(before, "after explain")
		r.Pass(false)
	}
}

// TestUnixNameTaken restores a server whose name somebody else has by now: nothing is made, and the
// refusal names him.
func TestUnixNameTaken(t *testing.T) {
	r := harness.Start(t, "unixsock", "servers")
	image := r.Dump("--kill")
	r.WaitGone()
	path := filepath.Join(r.Dir, "sock")
	must(t, os.Remove(path))
	l, err := net.Listen("unix", path)
	must(t, err)
	fails(t, []string{harness.Binary(), "restore", image}, path, "in use by pid "+itoa(os.Getpid()))
	if harness.Exists(r.PID) {
		t.Errorf("pid %d was made", r.PID)
	}
	must(t, l.Close()) // removes the file
	must(t, os.WriteFile(path, nil, 0o600))
	fails(t, []string{harness.Binary(), "restore", image}, path, "a regular file now")
	must(t, os.Remove(path))
	r.Restore(image)
	r.Pass(true)
}

// TestSSHAgent carries an ssh-agent and its key.
func TestSSHAgent(t *testing.T) {
	dir := harness.TempDir(t)
	sock, key := filepath.Join(dir, "agent"), filepath.Join(dir, "key")
	harness.Must(t, harness.Tool(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key)
	r := harness.StartCommand(t, dir, harness.Tool(t, "ssh-agent"), "-D", "-a", sock)
	r.WaitFile("agent")
	t.Setenv("SSH_AUTH_SOCK", sock)
	harness.Must(t, harness.Tool(t, "ssh-add"), key)
	before := harness.Must(t, harness.Tool(t, "ssh-add"), "-l").Stdout
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	if now := harness.Must(t, harness.Tool(t, "ssh-add"), "-l").Stdout; now != before || !strings.Contains(now, "ED25519") {
		t.Errorf("the agent has %q, had %q", now, before)
	}
	r.Kill()
}

// TestSocat carries a socat that is connected to a child by a pair of sockets.
func TestSocat(t *testing.T) {
	dir := harness.TempDir(t)
	sock := filepath.Join(dir, "s")
	r := harness.StartCommand(t, dir, harness.Tool(t, "socat"), "UNIX-LISTEN:"+sock+",fork", "EXEC:/bin/cat")
	r.WaitFile("s")
	ask := func(text string) {
		t.Helper()
		got := harness.RunIn(t, dir, strings.NewReader(text), harness.Tool(t, "socat"), "-", "UNIX-CONNECT:"+sock)
		if got.Code != 0 || got.Stdout != text {
			t.Errorf("cat said to %q: %v", text, got)
		}
	}
	ask("before\n")
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	ask("after\n")
	r.Kill()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
