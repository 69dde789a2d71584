package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// sample returns a program that was killed after a checkpoint, and its image.
func sample(t *testing.T, name string, args ...string) (*harness.Program, string) {
	t.Helper()
	r := harness.Start(t, name, args...)
	image := r.Dump("--kill")
	r.WaitGone()
	r.Again()
	return r, image
}

// refused restores a bad image by the command and through the mount: both have to fail, with
// the exit code 3, and no process may appear.
func refused(t *testing.T, m *harness.Mount, r *harness.Program, bad []byte, what string, words ...string) {
	t.Helper()
	refusedWith(t, 3, m, r, bad, what, words...)
}

// refusedWith is refused with another exit code.
func refusedWith(t *testing.T, code int, m *harness.Mount, r *harness.Program, bad []byte, what string, words ...string) {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), "bad")
	write(t, path, bad)
	got := harness.Run(t, harness.Binary(), "restore", path)
	if got.Code != code {
		t.Errorf("%s: exit code %d, not %d: %s", what, got.Code, code, got.Stderr)
	}
	harness.Say(t, what, got.Stderr, words...)
	if m != nil {
		harness.Run(t, "cp", path, m.Restore("bad"))
		os.Remove(m.Restore("bad"))
	}
	if harness.Exists(r.PID) {
		t.Fatalf("%s: pid %d exists afterwards", what, r.PID)
	}
	os.Remove(path)
}

// TestCutImages cuts an image at its boundaries and at random places.
func TestCutImages(t *testing.T) {
	m := harness.NewMount(t)
	r, image := sample(t, "counter")
	whole := read(t, image)
	n := len(whole)
	cuts := []int{1, 7, 8, 63, 512, 4095, 4096, 4097, 8192, n - 1, n - 31, n - 32, n - 33, n - 4096, n - n%4096}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for range soak(t, 20) {
		cuts = append(cuts, 1+rng.IntN(n-1))
	}
	for i, cut := range cuts {
		if i > 30 {
			m = nil
		}
		refused(t, m, r, whole[:cut], fmt.Sprintf("cut at %d of %d", cut, n))
	}
}

// TestFlippedBits flips one bit at a time.
func TestFlippedBits(t *testing.T) {
	r, image := sample(t, "counter")
	whole := read(t, image)
	n := len(whole)
	places := []int{0, 8, 9, 16, 24, 40, 100, 4096, 4097, n - 1, n - 8, n - 40}
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	for range soak(t, 30) {
		places = append(places, rng.IntN(n))
	}
	for _, p := range places {
		bad := bytes.Clone(whole)
		bad[p] ^= 1 << rng.IntN(8)
		refused(t, nil, r, bad, fmt.Sprintf("a bit flipped at %d of %d", p, n))
	}
	r.Restore(image)
	r.Pass(true)
}

// TestNoImages restores what is none.
func TestNoImages(t *testing.T) {
	m := harness.NewMount(t)
	r, image := sample(t, "counter")
	whole := read(t, image)
	for _, c := range []struct {
		name  string
		bytes []byte
	}{
		{"text", []byte("this is not an image\n")},
		{"an executable", read(t, harness.Binary())[:100000]},
		{"zeros", make([]byte, 1<<20)},
		{"empty", nil},
	} {
		refused(t, nil, r, c.bytes, c.name, "not a ckptfs image")
		if len(c.bytes) == 0 {
			continue // an empty file that is closed may still be written
		}
		path := filepath.Join(harness.TempDir(t), "bad")
		write(t, path, c.bytes)
		fails(t, []string{"cp", path, m.Restore("bad")}, "exec format error")
	}
	future := bytes.Clone(whole)
	binary.LittleEndian.PutUint32(future[8:], binary.LittleEndian.Uint32(future[8:])+1000)
	refused(t, m, r, future, "a header from the future", "version")

	r.Again()
	padded := filepath.Join(harness.TempDir(t), "padded")
	write(t, padded, append(bytes.Clone(whole), make([]byte, 1<<20+17)...))
	harness.Must(t, harness.Binary(), "restore", padded)
	r.Restored()
	r.Pass(true)
}

// TestCompressed restores images that went through zstd and gzip.
func TestCompressed(t *testing.T) {
	m := harness.NewMount(t)
	r, image := sample(t, "mem_anon")
	harness.Must(t, "zstd", "-q", "-k", image)
	harness.Must(t, "gzip", "-k", image)
	for _, ending := range []string{".zst", ".gz"} {
		r.Again()
		harness.Must(t, harness.Binary(), "restore", image+ending)
		r.Restored()
		r.Pass(true)
		r.Again()
		harness.Must(t, "cp", image+ending, m.Restore("image"+ending))
		r.Restored()
		r.Pass(true)
	}
	cut := read(t, image+".zst")
	refused(t, nil, r, cut[:len(cut)/2], "a compressed image that is cut")
}

// TestPIDTaken restores a program that still runs: the holder is named and lives on.
func TestPIDTaken(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "counter")
	image := r.Dump()
	got := fails(t, []string{harness.Binary(), "restore", image}, itoa(r.PID), "counter")
	if got.Code != 4 {
		t.Errorf("the exit code of a pid that is taken is 4: %v", got)
	}
	fails(t, []string{"cp", image, m.Restore("taken")}, "file exists")
	harness.Say(t, "status", m.Status("taken"), itoa(r.PID), "counter")
	r.Alive()
	r.Pass(false)
}

// TestTakenInTheTree takes the pid of a member only: nothing of the tree appears.
func TestTakenInTheTree(t *testing.T) {
	r := harness.Start(t, "ring", "4")
	pids := r.Tree()
	image := r.Dump()
	for _, pid := range append(pids[2:], pids[0]) {
		signal(t, pid, "KILL")
	}
	harness.Eventually(t, "killed", func() bool { return !harness.Exists(pids[0]) && !harness.Exists(pids[2]) })
	// Its pipes have ended, so member 1 ends as well unless it is stopped: whichever holds the pid counts.
	if harness.Exists(pids[1]) {
		fails(t, []string{harness.Binary(), "restore", image}, itoa(pids[1]))
		for _, pid := range append(pids[2:], pids[0]) {
			if harness.Exists(pid) {
				t.Errorf("pid %d exists after a restore that failed", pid)
			}
		}
	}
	r.Kill()
	r.Restore(image)
	r.Pass(true)
}

// TestKilledWriter kills the one who writes an image into restore/, and cuts one off: that
// restores nothing, and the next writer can.
func TestKilledWriter(t *testing.T) {
	m := harness.NewMount(t)
	r, image := sample(t, "ram", "64")
	half := size(t, image) / 2
	harness.Shell(t, fmt.Sprintf("head -c %d %s > %s", half, image, m.Restore("half")))
	w := exec.Command("/bin/bash", "-c", fmt.Sprintf("(head -c %d %s; echo > %s/w; sleep 1000) > %s", half, image, r.Dir, m.Restore("killed")))
	w.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	harness.Background(t, w)
	harness.Eventually(t, "half of it written", func() bool { _, err := os.Stat(filepath.Join(r.Dir, "w")); return err == nil })
	unix.Kill(-w.Process.Pid, unix.SIGKILL)
	if harness.Exists(r.PID) {
		t.Fatal("half an image was restored")
	}
	harness.Say(t, "log", m.Log("half")+m.Status("half"), "cut")
	harness.Must(t, "cp", image, m.Restore("whole"))
	r.Restored()
	r.Pass(true)
}

// TestChangedFiles restores after the files of a program have changed.
func TestChangedFiles(t *testing.T) {
	m := harness.NewMount(t)
	for _, c := range []struct {
		name, prog, arg string
		change          func(dir string) error
		words           []string // nil: it restores
	}{
		{"grown", "files", "regular", func(d string) error { return appendTo(d, "plain") }, nil},
		{"missing", "files", "regular", func(d string) error { return os.Remove(filepath.Join(d, "plain")) }, []string{"plain", "fd "}},
		{"shorter than the offset", "files", "regular", func(d string) error { return os.Truncate(filepath.Join(d, "plain"), 10) }, []string{"plain", "33"}},
		{"another kind", "files", "regular", func(d string) error {
			os.Remove(filepath.Join(d, "plain"))
			return os.Mkdir(filepath.Join(d, "plain"), 0o755)
		}, []string{"plain", "director"}},
		{"a mapped file changed", "mem_file", "", func(d string) error { return appendTo(d, "private.dat") }, []string{"private.dat"}},
		{"a mapped file is gone", "mem_file", "", func(d string) error { return os.Remove(filepath.Join(d, "private.dat")) }, []string{"private.dat"}},
		{"the working directory is gone", "limits", "", func(d string) error { return os.Rename(filepath.Join(d, "a directory"), filepath.Join(d, "b")) }, []string{"a directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, image := sample(t, c.prog, c.arg)
			if err := c.change(r.Dir); err != nil {
				t.Fatal(err)
			}
			if c.words == nil {
				r.Restore(image)
				r.Pass(true)
				return
			}
			fails(t, []string{harness.Binary(), "restore", image}, c.words...)
			if got := harness.Run(t, "cp", image, m.Restore("changed")); got.Code == 0 {
				t.Error(got)
			}
			harness.Say(t, "status and log", m.Status("changed")+m.Log("changed"), c.words[0])
			if harness.Exists(r.PID) {
				t.Error("the process is there all the same")
			}
		})
	}
}

func appendTo(dir, name string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("more"); err != nil {
		return err
	}
	return f.Close()
}

// TestDiskFull fills the disk of the reader, of the command and of the store.
func TestDiskFull(t *testing.T) {
	small := filepath.Join(harness.TempDir(t), "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	m := harness.NewMount(t)
	r := harness.Start(t, "pause", "32") // its memory does not compress

	fails(t, []string{"cp", m.Image(r), filepath.Join(small, "image")}, "no space left")
	r.Alive()
	os.Remove(filepath.Join(small, "image"))
	got := fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", filepath.Join(small, "image")}, "no space left")
	if got.Code != 6 {
		t.Errorf("the exit code of a full disk is 6: %v", got)
	}
	if entries, _ := os.ReadDir(small); len(entries) > 0 {
		t.Errorf("a dump that failed left %v", entries)
	}
	r.Alive()

	full := harness.NewMountAt(t, filepath.Join(small, "store"))
	fails(t, []string{"cat", full.Image(r)}, "no space left")
	if names := full.Images(); len(names) > 0 {
		t.Errorf("a checkpoint that did not fit is listed: %q", names)
	}
	little := harness.Start(t, "counter")
	harness.Must(t, "cat", full.Image(little)) // the store is whole and has room again
	full.WaitImages(1)
	little.Pass(false)
	r.Pass(false)
}
