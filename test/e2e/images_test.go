package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// newImage makes the image of the newest format anew. It is for the release of a format, not
// for making a failing test pass: go test ./test/e2e -run TestReleasedImages -new-image
var newImage = flag.Bool("new-image", false, "make the image of the newest format in test/images anew")

// imageVersions are the formats that were released, the newest last.
var imageVersions = []string{"v1", "v2"}

// imageHome is where the program of an image lived when the image was taken: its path and the
// time of its file are in the image.
func imageHome(version string) string { return "/tmp/ckptfs-image-" + version }

var imageTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// imagePID is the pid in the image: high, so that it is rarely taken.
const imagePID = 31777

// TestReleasedImages restores the images of all released formats.
func TestReleasedImages(t *testing.T) {
	for _, v := range imageVersions {
		t.Run(v, func(t *testing.T) { restoreReleased(t, v) })
	}
}

func restoreReleased(t *testing.T, version string) {
	dir, err := filepath.Abs("../images/" + version)
	if err != nil {
		t.Fatal(err)
	}
	home := imageHome(version)
	install(t, filepath.Join(dir, "tick"), home)
	image := filepath.Join(dir, "image")
	if *newImage && version == imageVersions[len(imageVersions)-1] {
		takeImage(t, image, home)
	}
	r := harness.Run(t, harness.Binary(), "restore", image)
	if r.Code != 0 {
		refusedByName(t, r.String())
		return
	}
	t.Cleanup(func() { killTick(imagePID, home) })
	if err := os.WriteFile(home+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the restored program to say how it is", func() bool {
		b, _ := os.ReadFile(home + "/result")
		return len(b) > 0
	})
	if b, _ := os.ReadFile(home + "/result"); string(b) != "ok\n" {
		t.Errorf("the restored program says %q", b)
	}
}

// install puts the program where the image looks for it.
func install(t *testing.T, program, home string) {
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	path := filepath.Join(home, "tick")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	if err := os.Chtimes(path, imageTime, imageTime); err != nil {
		t.Fatal(err)
	}
}

// takeImage starts the program under imagePID and takes its image.
func takeImage(t *testing.T, image, home string) {
	line := "cd " + home + " && exec 3>/proc/sys/kernel/ns_last_pid && echo " + strconv.Itoa(imagePID-2) + // the subshell takes one
		" >&3 && exec 3>&- && (setsid env -i ./tick </dev/null >/dev/null 2>&1 & echo $!)"
	pid := strings.TrimSpace(harness.Must(t, "sh", "-c", line).Stdout)
	if pid != strconv.Itoa(imagePID) {
		t.Fatalf("the program became pid %s, not %d; try again", pid, imagePID)
	}
	time.Sleep(200 * time.Millisecond) // a few turns
	harness.Must(t, harness.Binary(), "dump", pid, "--kill", "-o", image)
	harness.Eventually(t, "the program to be gone", func() bool { return !harness.Exists(imagePID) })
}

// refusedByName accepts what may keep an old image from a new machine, and nothing else.
func refusedByName(t *testing.T, said string) {
	for _, reason := range []string{"vdso", "CPU", "XSAVE"} {
		if strings.Contains(said, reason) {
			t.Logf("refused by name on this machine: %s", said)
			return
		}
	}
	t.Errorf("neither restored nor refused for the machine it was taken on:\n%s", said)
}

// killTick ends the restored program if it is still there and is what it should be.
func killTick(pid int, home string) {
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err == nil && exe == home+"/tick" {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill() // it may have ended this moment
		}
	}
}
