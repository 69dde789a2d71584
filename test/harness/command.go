package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Result is how a command ended.
type Result struct {
	Args   []string
	Code   int // exit code, -1 if killed by a signal
	Stdout string
	Stderr string
}

// String shows the command for the report of a failure.
func (r Result) String() string {
	return fmt.Sprintf("%s: exit code %d\nstdout: %sstderr: %s", strings.Join(r.Args, " "), r.Code, tail([]byte(r.Stdout)), tail([]byte(r.Stderr)))
}

// combined runs a command for its output.
func combined(c *exec.Cmd) ([]byte, error) {
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	if err := start(c); err != nil {
		return nil, err
	}
	err := wait(c)
	return b.Bytes(), err
}

// Run runs a command with a deadline that only a hang reaches.
func Run(t testing.TB, argv ...string) Result {
	t.Helper()
	return RunIn(t, "", nil, argv...)
}

// RunIn runs a command in a folder with an input.
func RunIn(t testing.TB, dir string, stdin io.Reader, argv ...string) Result {
	t.Helper()
	// Not t.Context: a cleanup runs commands too.
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	c.Dir, c.Stdin, c.Stdout, c.Stderr = dir, stdin, &out, &errs
	// A restored process that kept our pipe open must not keep us waiting.
	c.WaitDelay = patience
	if err := start(c); err != nil {
		t.Fatal(err)
	}
	err := wait(c)
	r := Result{Args: argv, Stdout: out.String(), Stderr: errs.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		t.Fatalf("%v: %v", argv, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("hangs: %v", r)
	}
	return r
}

// Must runs a command that has to succeed.
func Must(t testing.TB, argv ...string) Result {
	t.Helper()
	r := Run(t, argv...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	return r
}

// Shell runs a line of bash.
func Shell(t testing.TB, line string) Result {
	t.Helper()
	return Run(t, "/bin/bash", "-c", line)
}

// Dump takes a checkpoint with the command and returns the image's path.
func (p *Program) Dump(args ...string) string {
	p.t.Helper()
	image := join(TempDir(p.t), "image")
	p.DumpTo(image, args...)
	return image
}

// DumpTo takes a checkpoint into the file image.
func (p *Program) DumpTo(image string, args ...string) {
	p.t.Helper()
	argv := append([]string{run.binary, "dump", fmt.Sprint(p.PID), "-o", image}, args...)
	Must(p.t, argv...)
	if fi, err := os.Stat(image); err != nil || fi.Mode().IsRegular() && fi.Size() == 0 {
		p.t.Fatalf("dump succeeded without an image: %v", err)
	}
}

// Restore brings the program back from an image with the command.
func (p *Program) Restore(image string, args ...string) {
	p.t.Helper()
	p.Again()
	Must(p.t, append([]string{run.binary, "restore", image}, args...)...)
	p.Restored()
}

// Restored checks that the tree is there again after a restore by whatever way.
func (p *Program) Restored() {
	p.t.Helper()
	if !slices.Contains(marked(p.id), p.PID) {
		p.t.Fatalf("restore succeeded, but pid %d is not this program: %s (%s)", p.PID, commandOf(p.PID), p.said())
	}
}

// Background starts a command that the end of the test kills, with all of its process group
// if it has one of its own.
func Background(t testing.TB, c *exec.Cmd) {
	t.Helper()
	if err := start(c); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		wait(c) // at once: a zombie of ours would hide the orphans behind it from the reaper
		close(done)
	}()
	t.Cleanup(func() {
		if c.SysProcAttr != nil && (c.SysProcAttr.Setsid || c.SysProcAttr.Setpgid) {
			unix.Kill(-c.Process.Pid, unix.SIGKILL)
		}
		c.Process.Kill()
		<-done
	})
}

// RunKilled runs a command and kills it after a time if it still runs.
func RunKilled(t testing.TB, c *exec.Cmd, after time.Duration) {
	t.Helper()
	RunSignalled(t, c, after, unix.SIGKILL)
}

// RunSignalled runs a command, sends it a signal after a time and waits for its end.
func RunSignalled(t testing.TB, c *exec.Cmd, after time.Duration, sig unix.Signal) {
	t.Helper()
	if err := start(c); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { c.Process.Signal(sig) })
	defer timer.Stop()
	wait(c) // killed or not: the caller looks at what is left
}
