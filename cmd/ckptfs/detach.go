package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

// How a server in the background says that it is up: it inherits the writing end of a pipe,
// whose number is in this variable, and writes readyWord, or its exit code and a sentence.
const (
	readyEnv  = "CKPTFS_READY_FD"
	readyWord = "ready"
)

// readyPipe returns the pipe if this process was started by detach, else nil.
func readyPipe() (*os.File, error) {
	v := os.Getenv(readyEnv)
	if v == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 3 {
		return nil, usagef("%s is not for users: %q", readyEnv, v)
	}
	if err := os.Unsetenv(readyEnv); err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready"), nil
}

// again is the command line that says what this one said, with paths that are absolute now.
func (f *mountFlags) again() []string {
	args := []string{"mount"}
	f.flags.VisitAll(func(fl *pflag.Flag) {
		if v := fl.Value.String(); v != "" && fl.Name != "foreground" {
			args = append(args, "--"+fl.Name+"="+v)
		}
	})
	return args
}

// detach starts this program again as a server without a terminal and waits until its mount
// is up. A Go program cannot fork, so it executes itself.
func (f *mountFlags) detach(c *console, dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append(f.again(), "--", dir)...)
	cmd.Args[0] = "ckptfs"
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), absoluteDebug()...), readyEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = c.Err // until its log is open
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if string(said) == readyWord {
		c.notef("mounted on %s, served by process %d; its log is %s", dir, cmd.Process.Pid, f.log)
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // its exit code says less than what it wrote
	code, text, ok := strings.Cut(string(said), " ")
	n, err := strconv.Atoi(code)
	if !ok || err != nil {
		return fmt.Errorf("the server died at once; its log is %s", f.log)
	}
	c.notef("ckptfs: %s", text)
	return statusError(n)
}
