package fusefs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSeriesStaysBounded reads one image again and again, as a cron job does: old ones go,
// the renamed one stays, and so does what an open reader reads.
func TestSeriesStaysBounded(t *testing.T) {
	m := mountKeeping(t, 3)
	pid, other := target(t), target(t)
	m.ok(other, "cat $MNT/ckpt/$PID/image > other")
	m.ok(pid, "cat $MNT/ckpt/$PID/image > first; mv $MNT/images/*-$PID-* $MNT/images/mine; cat $MNT/ckpt/$PID/image > second")
	second := strings.TrimSpace(m.ok(pid, "basename $MNT/images/*-$PID-*"))
	out, err := os.Create(m.out("held"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// Reads on when its image is no longer listed and collected.
	held := exec.Command("bash", "-c", "exec 3< $0; read -r; exec cat <&3", filepath.Join(m.mnt, "images", second, "image"))
	held.Stdout, held.Stderr = out, os.Stderr
	in, err := held.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Start(); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		m.ok(pid, "cat $MNT/ckpt/$PID/image > last")
	}
	eventually(t, "old images are removed", func() bool { return len(m.images()) == 5 })
	eventually(t, "their space is freed", func() bool { return m.logged("freed ") })
	for _, says := range []string{"image " + second + " removed: not among the newest 3 of "} {
		if !m.logged(says) {
			t.Errorf("the log does not say %q", says)
		}
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := held.Wait(); err != nil {
		t.Error(err)
	}
	for _, n := range []string{"mine", "held"} {
		want := map[string]string{"mine": "first", "held": "second"}[n]
		path := m.out(n)
		if n == "mine" {
			path = filepath.Join(m.mnt, "images/mine/image")
		}
		if got := checkImage(t, path); got != checkImage(t, m.out(want)) {
			t.Errorf("%s is not what was read then, but checkpoint %d", n, got)
		}
	}
	for _, n := range m.images() {
		checkImage(t, filepath.Join(m.mnt, "images", n, "image"))
	}
	if n := m.ok(other, "ls -d $MNT/images/*-$PID-* | wc -l"); n != "1\n" {
		t.Errorf("%s images of the other process, want 1", n)
	}
	m.ok(pid, "rm -r $MNT/images/mine")
	if n := len(m.images()); n != 4 {
		t.Errorf("%d images after the removal", n)
	}
}

// TestInfoShowsSizes reads info before and after a rename, by programs that believe stat.
func TestInfoShowsSizes(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > f; cat $MNT/ckpt/$PID/image > f")
	out := m.ok(pid, `python3 - $MNT/images $PID <<'END'
import json, os, sys
d, pid = sys.argv[1:]
def look(name):
    p = os.path.join(d, name, 'info')
    before = os.stat(p).st_size
    with open(p, 'rb') as f:
        during = os.fstat(f.fileno()).st_size
        b = f.read()
    assert before == during == len(b) == os.stat(p).st_size, (before, during, len(b))
    return json.loads(b)
for name in os.listdir(d):
    i = look(name)
    assert i['size'] == os.stat(os.path.join(d, name, 'image')).st_size
    assert i['kept'] is False and i['pid'] == int(pid), i
    assert 0 < i['unique'] < i['size'], i
    assert abs(i['ratio'] - i['size'] / i['unique']) < 0.01, i
held = open(os.path.join(d, name, 'info'), 'rb')
size = os.fstat(held.fileno()).st_size
os.rename(os.path.join(d, name), os.path.join(d, 'mine'))
assert os.fstat(held.fileno()).st_size == size == len(held.read())
j = look('mine')
assert j.pop('kept') is True and i.pop('kept') is False and i == j, (i, j)
print('fine')
END`)
	if !strings.Contains(out, "fine") {
		t.Error(out)
	}
	m.fails(pid, `mv $MNT/images/mine $MNT/images/$'x\xff'`, "Invalid or incomplete multibyte")
}

// TestNoRoom has a checkpoint fail on a full disk: what can go then goes.
func TestNoRoom(t *testing.T) {
	m := mountKeeping(t, 1)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > f")
	m.set("stream-errno", 28)
	m.fails(pid, "cat $MNT/ckpt/$PID/image > g", "No space left on device")
	m.set("stream-errno", 0)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > h")
	eventually(t, "the old image goes", func() bool { return len(m.images()) == 1 })
	eventually(t, "and what the failed one left", func() bool { return m.logged("freed ") })
	if got := checkImage(t, filepath.Join(m.mnt, "images", m.images()[0], "image")); got != checkImage(t, m.out("h")) {
		t.Errorf("checkpoint %d is left", got)
	}
}

// TestSettles reads an image whose store is compressed again meanwhile, and takes it back.
func TestSettles(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > first")
	eventually(t, "what was stored fast is compressed again", func() bool { return m.logged("compressed again ") })
	m.ok(pid, "cat $MNT/images/*-$PID-*/image > stored; cmp first stored; cat $MNT/ckpt/$PID/image > second")
	if checkImage(t, m.out("stored")) != checkImage(t, m.out("first")) {
		t.Error("it is not what was read then")
	}
}
