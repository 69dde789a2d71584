package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// readers are the tools that take a checkpoint: IMAGE is the path in the mount, OUT a file to
// be made, DIR a folder. The command leaves the image in OUT.
var readers = []struct{ name, line string }{
	{"cat", "cat {IMAGE} > {OUT}"},
	{"cp", "cp {IMAGE} {OUT}"},
	{"cp-a", "cp -a {IMAGE} {OUT}"},
	{"dd", "dd if={IMAGE} of={OUT} bs=1M status=none"},
	{"dd-odd", "dd if={IMAGE} of={OUT} bs=7777 status=none"},
	{"tar", "tar -C {PIDDIR} -cf {DIR}/t.tar image && tar -C {DIR} -xf {DIR}/t.tar && mv {DIR}/image {OUT}"},
	{"rsync", "rsync {IMAGE} {OUT}"},
	{"rsync-a", "rsync -a {IMAGE} {OUT}"},
	{"restic", "export RESTIC_PASSWORD=x RESTIC_REPOSITORY={DIR}/repo RESTIC_CACHE_DIR={DIR}/cache; restic -q init && restic -q backup {IMAGE} && " +
		"restic -q dump latest {IMAGE} > {OUT}"},
	{"zstd", "zstd -q < {IMAGE} > {DIR}/z && zstd -q -d < {DIR}/z > {OUT}"},
	{"shutil", `{PYTHON} -c 'import shutil,sys; shutil.copyfile(sys.argv[1], sys.argv[2])' {IMAGE} {OUT}`},
	{"shutil-copy2", `{PYTHON} -c 'import shutil,sys; shutil.copy2(sys.argv[1], sys.argv[2])' {IMAGE} {OUT}`},
}

// writers are the tools that restore: IN is an image, TO a path below restore/.
var writers = []struct{ name, line string }{
	{"cp", "cp {IN} {TO}"},
	{"cp-a", "cp -a {IN} {TO}"},
	{"cat", "cat {IN} > {TO}"},
	{"dd", "dd if={IN} of={TO} bs=1M status=none"},
	{"rsync", "rsync {IN} {TO}"},
	{"rsync-inplace", "rsync -a --inplace {IN} {TO}"},
	{"mv", "cp {IN} {DIR}/moved && mv {DIR}/moved {TO} && test ! -e {DIR}/moved"},
	{"tar", "cp {IN} {DIR}/{NAME} && tar -C {DIR} -cf {DIR}/w.tar {NAME} && tar -C {RESTORE} -xf {DIR}/w.tar"},
	{"shutil", `{PYTHON} -c 'import shutil,sys; shutil.copyfile(sys.argv[1], sys.argv[2])' {IN} {TO}`},
}

// with fills in a command line for a program and a mount.
func with(t *testing.T, m *harness.Mount, r *harness.Program, in, out, name string) map[string]string {
	t.Helper()
	return map[string]string{
		"IMAGE": m.Image(r), "PIDDIR": filepath.Dir(m.Image(r)), "OUT": out, "IN": in, "DIR": harness.TempDir(t),
		"TO": m.Restore(name), "RESTORE": filepath.Join(m.Dir, "restore"), "NAME": name, "PYTHON": harness.Python(t),
	}
}

// TestReaders takes a checkpoint with every tool. The program goes on, the image is whole and
// restores, and the store holds the very bytes.
func TestReaders(t *testing.T) {
	m := harness.NewMount(t)
	for i, tool := range readers {
		t.Run(tool.name, func(t *testing.T) {
			r := harness.Start(t, "signals")
			out := filepath.Join(harness.TempDir(t), "out")
			if r := harness.Shell(t, fill(tool.line, with(t, m, r, "", out, ""))); r.Code != 0 {
				t.Fatal(r)
			}
			r.Alive()
			names := m.WaitImages(i + 1)
			same := false
			for _, n := range names {
				same = same || string(read(t, filepath.Join(m.Dir, "images", n, "image"))) == string(read(t, out))
			}
			if !same {
				t.Errorf("no image of %q in the store equals the %d bytes that %s read", names, size(t, out), tool.name)
			}
			r.Kill()
			r.Restore(out)
			r.Pass(true)
		})
	}
}

// TestWriters restores with every tool.
func TestWriters(t *testing.T) {
	m := harness.NewMount(t)
	for _, tool := range writers {
		t.Run(tool.name, func(t *testing.T) {
			r := harness.Start(t, "signals")
			before := r.Look()
			in := r.Dump("--kill")
			r.WaitGone()
			r.Again()
			if got := harness.Shell(t, fill(tool.line, with(t, m, r, in, "", "by-"+tool.name))); got.Code != 0 {
				t.Fatalf("%v\nlog: %s", got, m.Log("by-"+tool.name))
			}
			r.Restored()
			r.Same(before, "after a restore by "+tool.name)
			harness.Say(t, "status", m.Status("by-"+tool.name), `"restored"`, itoa(r.PID))
			r.Pass(true)
		})
	}
}

// TestMove moves the image out of the mount: only while the tree is frozen, and then it is gone.
func TestMove(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "signals")
	out := filepath.Join(harness.TempDir(t), "out")
	if got := harness.Run(t, "mv", m.Image(r), out); got.Code == 0 {
		t.Errorf("mv of a running process: %v", got)
	}
	r.Alive()
	os.Remove(out)
	state := m.Of(r, "state")
	harness.Say(t, "state", string(read(t, state)), "running")
	write(t, state, []byte("frozen\n"))
	harness.Say(t, "state", string(read(t, state)), "frozen")
	harness.Must(t, "mv", m.Image(r), out)
	r.WaitGone()
	r.Again()
	harness.Must(t, "cp", out, m.Restore("moved"))
	r.Restored()
	r.Pass(true)
}

// TestState freezes, lets go and kills by the state file.
func TestState(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "counter")
	state := m.Of(r, "state")
	write(t, state, []byte("frozen"))
	harness.Say(t, "state", string(read(t, state)), "frozen")
	// A frozen process does not answer.
	write(t, filepath.Join(r.Dir, "go"), []byte("plain\n"))
	if harness.State(r.PID) == 'R' {
		t.Error("a frozen process runs")
	}
	write(t, state, []byte("running"))
	r.Finish()

	r = harness.Start(t, "ring", "4")
	write(t, m.Of(r, "state"), []byte("killed\n"))
	r.WaitGone()
}

// TestWalkers walks over the whole mount with tools that open what they find: that takes no checkpoint.
func TestWalkers(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "lonely")
	dir := harness.TempDir(t)
	for _, line := range []string{
		"grep -rq nothingtofind {M}; test $? -le 2",
		"find {M} -type f -exec cat {} + >/dev/null 2>&1; true",
		"tar -C {M} -cf {D}/all.tar . 2>/dev/null; true",
		"du -a {M} > /dev/null 2>&1; true",
		"ls -lR {M} > /dev/null 2>&1; true",
		"rsync -a {M}/ckpt {D}/copy >/dev/null 2>&1; true",
		"cp -r {M}/ckpt {D}/copy2 >/dev/null 2>&1; true",
		`{P} -c 'import os,sys
for d, _, names in os.walk(sys.argv[1]):
    for n in names:
        try: open(os.path.join(d, n), "rb").read()
        except OSError: pass' {M}`,
	} {
		line = fill(line, map[string]string{"M": m.Dir, "D": dir, "P": harness.Python(t)})
		if got := harness.Shell(t, line); got.Code != 0 {
			t.Error(got)
		}
		if names := m.Images(); len(names) > 0 {
			t.Fatalf("%s took checkpoints: %q", line, names)
		}
	}
	r.Pass(false)
}

// TestSizes looks at the image before and after it is opened.
func TestSizes(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "ram", "16")
	estimate := size(t, m.Image(r))
	if estimate == 0 {
		t.Error("the estimate is 0")
	}
	f, err := os.Open(m.Image(r))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > estimate || fi.Size() < 16<<20 {
		t.Errorf("exact size %d, estimate %d", fi.Size(), estimate)
	}
	n, err := f.WriteTo(discard{})
	if err != nil || n != fi.Size() {
		t.Errorf("read %d bytes, %v; the size was %d", n, err, fi.Size())
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Image(r), &st); err != nil || st.Mode != unix.S_IFREG|0o400 {
		t.Errorf("mode %o, %v; not 0400", st.Mode, err)
	}
	r.Pass(false)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// TestRandomAccess reads the image out of order, while it may still be in the making.
func TestRandomAccess(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "ram", "32")
	f, err := os.Open(m.Image(r))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, _ := f.Stat()
	end := make([]byte, 4096)
	if _, err := f.ReadAt(end, fi.Size()-4096); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, fi.Size())
	if _, err := f.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	if string(all[len(all)-4096:]) != string(end) {
		t.Error("the end differs from one read to the next")
	}
	r.Pass(false)
}

// TestParallelReaders reads one process by several readers at once: each gets one whole image.
func TestParallelReaders(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "threads", "4")
	dir := harness.TempDir(t)
	line := fmt.Sprintf("for i in 1 2 3 4 5 6; do cat %s > %s/$i & p=\"$p $!\"; done; for x in $p; do wait $x || exit 1; done", m.Image(r), dir)
	if got := harness.Shell(t, line); got.Code != 0 {
		t.Fatal(got)
	}
	for i := 1; i <= 6; i++ {
		harness.Must(t, harness.Binary(), "show", filepath.Join(dir, itoa(i)))
	}
	r.Kill()
	r.Restore(filepath.Join(dir, "4"))
	r.Pass(true)
}

// TestDeadReader ends a reader in the middle: the target does not notice, nothing stays behind.
func TestDeadReader(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "ram", "64")
	for _, line := range []string{
		"head -c 5000000 {I} > /dev/null",
		"timeout -s INT 0.1 cat {I} | sleep 0.5",
		"timeout -s KILL 0.1 cat {I} | sleep 0.5",
		"exec 9< {I}; exec 9<&-",
	} {
		harness.Shell(t, fill(line, map[string]string{"I": m.Image(r)}))
		r.Alive()
	}
	harness.Must(t, "cat", m.Image(r))
	r.Pass(false)
}

// TestSelf has members of the tree read their own image.
func TestSelf(t *testing.T) {
	m := harness.NewMount(t)
	dir := harness.TempDir(t)
	line := fmt.Sprintf("cat %s/ckpt/$$/image > image 2> err; echo $? > code; echo > ready; while [ ! -e go ]; do sleep 0.05; done; echo ok > result", m.Dir)
	r := harness.StartCommand(t, dir, "/bin/bash", "-c", line)
	r.WaitReady()
	if c := strings.TrimSpace(string(read(t, filepath.Join(dir, "code")))); c == "0" {
		t.Error("a process read the image of its own tree")
	}
	harness.Say(t, "cat", string(read(t, filepath.Join(dir, "err"))), "deadlock")
	r.Pass(false)
}

// TestStoredImage restores from images/, after a rename there, and removes it.
func TestStoredImage(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "mem_anon")
	harness.Must(t, "cp", m.Image(r), "/dev/null")
	name := m.WaitImages(1)[0]
	harness.Say(t, "the name", name, "mem_anon-"+itoa(r.PID)+"-")
	dir := filepath.Join(m.Dir, "images")
	harness.Must(t, "mv", filepath.Join(dir, name), filepath.Join(dir, "kept"))
	r.Kill()
	r.Again()
	harness.Must(t, "cp", filepath.Join(dir, "kept", "image"), m.Restore("kept"))
	r.Restored()
	r.Pass(true)
	for _, f := range []string{"info", "manifest.json"} {
		if len(read(t, filepath.Join(dir, "kept", f))) == 0 {
			t.Errorf("%s is empty", f)
		}
	}
	harness.Must(t, "rm", "-r", filepath.Join(dir, "kept"))
	m.WaitImages(0)
}

// TestDedup takes many checkpoints of one process: the store grows by what changed.
func TestDedup(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "mem_anon")
	grow := make([]int64, 4)
	for i := range grow {
		harness.Must(t, "cat", m.Image(r))
		m.WaitImages(i + 1)
		grow[i] = used(t, m.Store)
	}
	if first, more := grow[0], grow[3]-grow[0]; more > first {
		t.Errorf("the first checkpoint took %d bytes, three more of the same %d", first, more)
	}
	r.Pass(false)
}

// used sums what a folder takes on disk.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(p, &st)
		n += st.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRemount ends the daemon, hard too, and mounts again: the store is whole, restored
// programs live on.
func TestRemount(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "counter")
	harness.Must(t, "cat", m.Image(r))
	names := m.WaitImages(1)
	r.Kill()
	r.Again()
	harness.Must(t, "cp", filepath.Join(m.Dir, "images", names[0], "image"), m.Restore("again"))
	r.Restored()
	m.KillDaemon()
	r.Alive()
	m.Again() // over the stale mount
	r.Alive()
	if got := m.Images(); len(got) != 1 || got[0] != names[0] {
		t.Errorf("images are %q, were %q", got, names)
	}
	r.Pass(true)
}
