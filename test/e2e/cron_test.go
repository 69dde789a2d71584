package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// TestCron takes cron away while it waits for the next minute, whose job runs after the restore. It has a root directory of its
// own, with nothing in it but itself and that job, so that those of the machine do not matter.
func TestCron(t *testing.T) {
	root := harness.TempDir(t)
	for _, dir := range []string{"etc/pam.d", "etc/cron.d", "var/run", "run", "var/spool/cron/crontabs", "dev", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{harness.Tool(t, "cron"), "/bin/sh"} {
		copyProgram(t, root, program)
	}
	permit, err := filepath.Glob("/lib/*/security/pam_permit.so")
	if err != nil || len(permit) != 1 {
		t.Fatalf("pam_permit.so: %v, %v", permit, err)
	}
	copyProgram(t, root, permit[0])
	pam := "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/pam.d/cron": pam, "etc/pam.d/other": pam,
		"etc/crontab": "SHELL=/bin/sh\n* * * * * root echo \"ran with $LOGNAME\" >> /tmp/ran\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	r := harness.StartCommand(t, harness.TempDir(t), harness.Tool(t, "chroot"), root, "/usr/sbin/cron", "-f")
	ran := filepath.Join(root, "tmp/ran")
	runs := func() int { b, _ := os.ReadFile(ran); return strings.Count(string(b), "ran with root\n") }
	if wait := 60 - time.Now().Second(); wait < 15 { // let it not run in the middle
		time.Sleep(time.Duration(wait+2) * time.Second)
	}
	harness.Eventually(t, "cron waits", func() bool { _, err := os.Stat(filepath.Join(root, "var/run/crond.pid")); return err == nil })
	before := runs()
	r.Dump()
	r.Alive()
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	if n := runs(); n != before {
		t.Fatalf("the job ran %d times before the minute was over", n-before)
	}
	minute := time.Now().Add(75 * time.Second)
	for runs() == before {
		if time.Now().After(minute) {
			t.Fatal("the job of the next minute did not run")
		}
		time.Sleep(200 * time.Millisecond)
	}
	r.Alive()
	r.Kill()
}

// copyProgram copies a program or library, and the libraries that it needs, to the same place below another root.
func copyProgram(t *testing.T, root, program string) {
	t.Helper()
	needs := harness.Must(t, "ldd", program).Stdout
	for _, path := range append(regexp.MustCompile(`/\S+`).FindAllString(needs, -1), program) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
