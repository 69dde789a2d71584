package s3test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gatewayPackage is the server, as go install takes it. .ci/run reads this line.
const gatewayPackage = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// GatewayEnv names the environment variable that may hold the path of the server's binary.
const GatewayEnv = "CKPTFS_VERSITYGW"

// buildLimit is far beyond what fetching and building the server takes.
const buildLimit = 15 * time.Minute

// gateway returns the path of the server: what GatewayEnv names, what is on PATH, or what
// an earlier run built; else it is built now, once for this user of this machine.
func gateway(t testing.TB) string {
	t.Helper()
	if name := os.Getenv(GatewayEnv); name != "" {
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%s must name the versitygw binary: %v", GatewayEnv, err)
		}
		return name
	}
	if name, err := exec.LookPath("versitygw"); err == nil {
		return name
	}
	name, err := build(cacheDir())
	if err != nil {
		t.Fatalf("no S3 server to test with (set %s, or let go install have network): %v", GatewayEnv, err)
	}
	return name
}

// cacheDir returns the folder for the binary of just this version.
func cacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil { // no HOME
		base = fmt.Sprintf("%s/ckptfs-%d", os.TempDir(), os.Getuid())
	}
	_, version, _ := strings.Cut(gatewayPackage, "@")
	return filepath.Join(base, "ckptfs-s3test", version)
}

// build returns the binary in dir, after making it if it is not there. Test binaries of
// several packages run at once; the lock lets one of them build and the others wait.
func build(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and so unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	name := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return name, err
	}
	// Installed aside and renamed: a build that is cut short leaves nothing under the name.
	tmp, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := install(tmp); err != nil {
		return "", err
	}
	return name, os.Rename(filepath.Join(tmp, "versitygw"), name)
}

// install has the go command build the server into a folder.
func install(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "go", "install", gatewayPackage)
	c.Dir = dir // no go.mod of anybody's in sight
	c.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go install %s: %w\n%s", gatewayPackage, err, out)
	}
	return nil
}
