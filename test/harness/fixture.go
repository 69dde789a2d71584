package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// fixtures holds what was built in this run, by name.
var fixtures sync.Map // string → func() (string, error)

// Fixture returns the path of a test program of test/progs that is ready to run, and builds
// it when it is asked for the first time. The name is that of NAME.c, of a Go folder, or of a
// script with its ending; NAME.so is NAME.c as a shared library.
func Fixture(t testing.TB, name string) string {
	t.Helper()
	f, _ := fixtures.LoadOrStore(name, sync.OnceValues(func() (string, error) { return build(name) }))
	path, err := f.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func build(name string) (string, error) {
	src := filepath.Join(run.source, "progs")
	library, shared := strings.CutSuffix(name, ".so")
	if strings.Contains(name, ".") && !shared {
		return filepath.Join(src, name), nil
	}
	out := join(filepath.Dir(run.binary), name)
	var c *exec.Cmd
	if shared {
		c = exec.Command("gcc", "-O2", "-g", "-shared", "-fPIC", "-o", out, join(src, library+".c"))
	} else if exists(join(src, name+".c")) {
		c = exec.Command("gcc", "-O2", "-g", "-static", "-pthread", "-o", out, join(src, name+".c"))
	} else {
		c = exec.Command("go", "build", "-buildvcs=false", "-o", out, join(src, name))
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if b, err := combined(c); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, b)
	}
	return out, nil
}

// Python returns a python3: that of the system if there is one, since others are often
// started through a chain of scripts.
func Python(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	t.Fatal("there is no python3")
	return ""
}

// Tool returns the path of a program that a test needs.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; .ci/run lists the packages that the tests need", err)
	}
	return path
}

// command returns how a fixture is started.
func command(t testing.TB, name string, args []string) []string {
	t.Helper()
	path := Fixture(t, name)
	switch filepath.Ext(name) {
	case ".py":
		return append([]string{Python(t), path}, args...)
	case ".sh":
		return append([]string{"/bin/bash", path}, args...)
	case ".pl":
		return append([]string{"/usr/bin/perl", path}, args...)
	case ".js":
		return append([]string{Tool(t, "node"), path}, args...)
	case ".java":
		return append([]string{Tool(t, "java"), "-XX:+UseSerialGC", "-Xmx64m", "-XX:-UsePerfData", path}, args...)
	}
	return append([]string{path}, args...)
}
