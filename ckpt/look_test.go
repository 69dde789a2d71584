package ckpt

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// TestSteadyLook looks at a shell that has a file open which is refused, and closes it.
func TestSteadyLook(t *testing.T) {
	cmd := exec.Command("sh", "-c", "exec 3</proc/1/status; echo; read x; exec 3<&-; read y")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	s, err := steadyLook(cmd.Process.Pid, nil)
	if err != nil || len(s.refusals()) != 1 {
		t.Fatalf("%v, %v", s, err)
	}
	if _, err := lookAccepted(t.Context(), nil, cmd.Process.Pid, Options{}); !errors.As(err, new(*image.RefusedError)) {
		t.Errorf("a file of another process is accepted: %v", err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	s, err = steadyLookFor(cmd.Process.Pid, nil, time.Minute, 10000)
	if err != nil || len(s.refusals()) != 0 {
		t.Errorf("after it is closed: %v, %v", s.refusals(), err)
	}
}

// TestOpened tells what may be gone at the next look from what may not.
func TestOpened(t *testing.T) {
	file, other := image.Finding{PID: 1, FD: 3}, image.Finding{PID: 1, FD: image.NoFD}
	for _, c := range []struct {
		err   error
		raced bool
	}{
		{nil, false},
		{errors.New("x"), false},
		{&image.RefusedError{Findings: []image.Finding{file}}, true},
		{fmt.Errorf("x: %w", &image.RefusedError{Findings: []image.Finding{file, file}}), true},
		{&image.RefusedError{Findings: []image.Finding{file, other}}, false},
		{&image.RefusedError{Findings: []image.Finding{other}}, false},
	} {
		err := opened(c.err)
		if errors.Is(err, errRaced) != c.raced {
			t.Errorf("%v: raced %v", c.err, !c.raced)
		}
		if !errors.Is(err, c.err) || err != nil && err.Error() != c.err.Error() {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}
