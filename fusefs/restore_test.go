package fusefs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// status is what the tests look at in NAME.status.
type status struct {
	State, Errno, Error string
	Bytes               int64
	Root                int
	PIDs                []int
}

func (m *mounted) status(name string) (s status) {
	m.t.Helper()
	b, err := os.ReadFile(m.mnt + "/restore/" + name + ".status")
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// withImage mounts and puts an image into out/img.
func withImage(t *testing.T) *mounted {
	m := mount(t)
	b, _, _, err := fakeImage(3)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.out("img"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestWriters uploads an image with the tools people use: each restores it exactly once.
func TestWriters(t *testing.T) {
	m := withImage(t)
	for _, tc := range []struct{ name, line string }{
		{"cp", `cp img $MNT/restore/f`},
		{"cp -a", `cp -a img $MNT/restore/f`},
		{"cat", `cat img > $MNT/restore/f`},
		{"cat append", `cat img >> $MNT/restore/f`},
		{"install", `install -m 600 img $MNT/restore/f`},
		{"dd", `dd if=img of=$MNT/restore/f bs=64k conv=fsync status=none`},
		{"dd backwards", `for i in 9 8 7 6 5 4 3 2 1 0; do dd if=img of=$MNT/restore/f bs=400k skip=$i seek=$i count=1 conv=notrunc status=none; done`},
		{"tee", `tee $MNT/restore/f < img > /dev/null`},
		{"mv", `cp img f; mv f $MNT/restore/f`},
		{"tar x", `cp img f; tar cf - f | tar xf - -C $MNT/restore`},
		{"rsync", `rsync img $MNT/restore/f`},
		{"rsync -a", `rsync -a img $MNT/restore/f`},
		{"rsync inplace", `rsync --inplace img $MNT/restore/f`},
		{"head and tail", `( head -c 100000 img; tail -c +100001 img ) > $MNT/restore/f`},
		{"python", `python3 -c 'import shutil, sys; shutil.copyfile("img", sys.argv[1])' $MNT/restore/f`},
		{"python with", `python3 -c 'import sys
with open(sys.argv[1], "wb") as f: f.write(open("img", "rb").read())' $MNT/restore/f`},
		{"zstd file", `zstd -q img -c > $MNT/restore/f`},
		{"gzip in two writes", `gzip -c img > z; ( head -c 20000 z; sleep 0.2; tail -c +20001 z ) > $MNT/restore/f`},
		{"zstd -d", `zstd -q img -o z.zst -f; zstd -q -d -f z.zst -o $MNT/restore/f`},
		{"trailing zeros", `( cat img; head -c 5000 /dev/zero ) > $MNT/restore/f`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			before := m.events("restore")
			m.ok(0, tc.line)
			if n := m.events("restore") - before; n != 1 {
				t.Errorf("restored %d times", n)
			}
			if s := m.status("f"); s.State != "restored" || s.Root != 1000 || len(s.PIDs) != 2 || s.Errno != "" {
				t.Errorf("status: %+v", s)
			}
			out := m.ok(0, "cat $MNT/restore/f.log $MNT/restore/f.out; ls $MNT/restore; stat -c %s $MNT/restore/f")
			for _, want := range []string{"restored by the fake", "a warning", "hello from the tree", "f\nf.log\nf.out\nf.status\n"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in %s", want, out)
				}
			}
			m.ok(0, "rm $MNT/restore/f; ! ls $MNT/restore | grep .")
		})
	}
	m.t = t
	// From checkpoint to restore within one mount, which the kernel does by splicing.
	m.ok(target(t), "cp $MNT/ckpt/$PID/image $MNT/restore/straight")
	if s := m.status("straight"); s.State != "restored" {
		t.Errorf("straight: %+v", s)
	}
	m.ok(0, "rm -r $MNT/restore/*; ! ls $MNT/restore | grep .")
}

// TestRestoreLinked copies a stored image to restore/ with copy_file_range(2), which moves no bytes,
// in whole and mixed with writes, after which the bytes have to be the same.
func TestRestoreLinked(t *testing.T) {
	m := mount(t)
	m.ok(target(t), "cp $MNT/ckpt/$PID/image img")
	m.ok(0, "until test -e $MNT/images/*/image; do sleep 0.05; done")
	const linked = "what was copied is read from images/"
	m.ok(0, "cp $MNT/images/*/image $MNT/restore/f")
	if s := m.status("f"); s.State != "restored" {
		t.Errorf("cp: %+v", s)
	}
	if out := m.ok(0, "cat $MNT/restore/f.log"); !strings.Contains(out, linked) {
		t.Errorf("cp moved the bytes: %s", out)
	}
	const py = `python3 -c 'import os, sys, glob
mnt = os.environ["MNT"]
i = os.open(glob.glob(mnt + "/images/*/image")[0], os.O_RDONLY)
o = os.open(mnt + "/restore/g", os.O_RDWR | os.O_CREAT)
size = os.fstat(i).st_size
def copy(off, n, to=None):
    while n > 0:
        k = os.copy_file_range(i, o, n, off, off if to is None else to)
        if k == 0: break
        off += k; n -= k
def write(off, n): os.pwrite(o, os.pread(i, n, off), off)
`
	for _, tc := range []struct {
		name, line string
		linked     bool
	}{
		{"in two parts", "copy(0, 50000); copy(50000, size)", true},
		{"then written", "copy(0, 50000); write(50000, size)", true},
		{"written first", "write(0, 50000); copy(50000, size)", false},
		{"backwards", "copy(50000, size); copy(0, 50000)", false},
		{"overwritten", "copy(0, size - 10); write(100, 10); write(size - 10, 10)", true},
		{"read back", "copy(0, 50000); assert os.pread(o, 50000, 0) == os.pread(i, 50000, 0); copy(50000, size)", true},
		{"truncated", "copy(0, 60000); os.ftruncate(o, 50000); copy(50000, size)", true},
	} {
		m.ok(0, py+tc.line+"'")
		if s := m.status("g"); s.State != "restored" {
			t.Errorf("%s: %+v", tc.name, s)
		}
		if out := m.ok(0, "cat $MNT/restore/g.log"); strings.Contains(out, linked) != tc.linked {
			t.Errorf("%s: %s", tc.name, out)
		}
		m.ok(0, "rm $MNT/restore/g")
	}
	m.ok(0, py+"copy(0, size, 4096)'") // a hole at the front: no image
	if s := m.status("g"); s.State == "restored" {
		t.Errorf("with a hole: %+v", s)
	}
	m.ok(0, "rm $MNT/restore/g")
	// The image may go while the copy is linked to it.
	m.ok(0, py+`copy(0, 50000); import shutil; shutil.rmtree(glob.glob(mnt + "/images/*")[0]); copy(50000, size)'`)
	if s := m.status("g"); s.State != "restored" {
		t.Errorf("after rm: %+v", s)
	}
}

// TestRestoreFails shows that the errno of a failed restore reaches the user of every tool.
func TestRestoreFails(t *testing.T) {
	m := withImage(t)
	m.ok(0, "touch -d yesterday img") // or rsync may find that f, of this second, is up to date
	m.set("restore-errno", int(syscall.EEXIST))
	for _, tc := range []struct{ line, says string }{
		{`cp img $MNT/restore/f`, "failed to close"},
		{`cat img > $MNT/restore/f`, "File exists"},
		{`dd if=img of=$MNT/restore/f status=none bs=1M`, "File exists"},
		{`rsync img $MNT/restore/f`, "File exists"},
		{`cp img g; mv g $MNT/restore/f`, "File exists"},
		{`tar cf - img | tar xf - -C $MNT/restore`, "Cannot close: File exists"},
	} {
		m.fails(0, tc.line, tc.says)
	}
	if s := m.status("f"); s.State != "failed" || s.Errno != "EEXIST" || !strings.Contains(s.Error, "the fake was told so") {
		t.Errorf("status: %+v", s)
	}
	m.set("restore-errno", 0)
	m.ok(0, "cp img $MNT/restore/f") // again, over the failed one
	if s := m.status("f"); s.State != "restored" {
		t.Errorf("second try: %+v", s)
	}
	m.set("restore-delay", 20000) // longer than the server's limit
	m.fails(0, "cp img $MNT/restore/slow", "Connection timed out")
}

// TestBadUploads writes what is no image, or not a whole one. Nothing may be restored.
func TestBadUploads(t *testing.T) {
	m := withImage(t)
	for _, tc := range []struct{ line, says string }{
		{`cp /bin/bash $MNT/restore/f`, "Exec format error"},
		{`echo hello, world > $MNT/restore/f`, "Exec format error"},
		{`head -c 100000 /dev/zero > $MNT/restore/f`, "Exec format error"},
		{`(head -c 8 img; echo -ne '\xff\0\0\0'; tail -c +13 img) > v; cp v $MNT/restore/f`, "Protocol error"},
		{`(head -c 5000 img; echo -n XXXXXXXX; tail -c +5009 img) > v; cp v $MNT/restore/f`, "Bad message"},
		{`(head -c 1500000 img; echo -n X; tail -c +1500002 img) > v; cp v $MNT/restore/f`, "Bad message"},
		{`(cat img; echo more) > v; cp v $MNT/restore/f`, "Bad message"},
		{`cp img $MNT/restore/x.status`, "Invalid argument"},
		{`mkdir $MNT/restore/d`, ""},
		{`ln -s x $MNT/restore/d`, ""},
	} {
		m.fails(0, "rm -f $MNT/restore/f; "+tc.line, tc.says)
	}
	m.ok(0, "rm -f $MNT/restore/f; head -c 1000000 img > $MNT/restore/f") // a close cannot tell that more was to come
	if s := m.status("f"); s.State != "partial" || !strings.Contains(s.Error, "cut off at 1000000 of 3") {
		t.Errorf("cut: %+v", s)
	}
	m.ok(0, "zstd -q -c img | head -c 20000 > $MNT/restore/z; cmp z <(zstd -q -c img | head -c 20000) 2>/dev/null; true")
	if s := m.status("z"); s.State != "partial" || !strings.Contains(s.Error, "cut off at 20000") {
		t.Errorf("cut zst: %+v", s)
	}
	m.ok(0, "tail -c +1000001 img >> $MNT/restore/f") // the rest comes after all
	if s := m.status("f"); s.State != "restored" {
		t.Errorf("continued: %+v", s)
	}
	if n := m.events("restore"); n != 1 {
		t.Errorf("restored %d times", n)
	}
	m.ok(0, "touch $MNT/restore/empty; cmp $MNT/restore/empty /dev/null")
	m.ok(0, "head -c 5000 img > $MNT/restore/part; head -c 5000 img | cmp - $MNT/restore/part; truncate -s 4500 $MNT/restore/part; stat -c %s $MNT/restore/part | grep -x 4500")
	m.fails(0, "cat $MNT/restore/f", "No data available")
}

// TestKilledWriter never restores, although all of the image was written.
func TestKilledWriter(t *testing.T) {
	m := withImage(t)
	for i, sig := range []string{"KILL", "TERM", "ABRT"} {
		name := fmt.Sprint("k", i)
		m.ok(0, `python3 -c 'import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
b = open("img", "rb").read()
while b: b = b[os.write(fd, b):]
open("written", "w")
time.sleep(100)' $MNT/restore/`+name+` & while ! [ -e written ]; do sleep 0.1; done; kill -`+sig+` $!; wait $!; rm written`)
		eventually(t, "SIG"+sig+" is in the status", func() bool {
			s := m.status(name)
			return s.State == "partial" && strings.Contains(s.Error, "killed")
		})
	}
	if n := m.events("restore"); n != 0 {
		t.Errorf("restored %d times", n)
	}
}

// TestBusyUpload uses an upload in all ways while it is restored.
func TestBusyUpload(t *testing.T) {
	m := withImage(t)
	m.set("restore-delay", 1500)
	done := make(chan error, 1)
	go func() {
		_, err := m.sh(0, "cp img $MNT/restore/f")
		done <- err
	}()
	eventually(t, "it is being restored", func() bool { return m.events("restore") == 1 })
	m.ok(0, "grep restoring $MNT/restore/f.status; grep verified $MNT/restore/f.log; ls -l $MNT/restore")
	m.fails(0, "cp img $MNT/restore/f", "Device or resource busy")
	m.fails(0, "rm $MNT/restore/f", "Device or resource busy")
	m.ok(0, "mv $MNT/restore/f $MNT/restore/g; cat $MNT/restore/g.status")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := m.status("g"); s.State != "restored" {
		t.Errorf("status: %+v", s)
	}
}

// TestImages renames and removes what is stored.
func TestImages(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "for i in 1 2 3; do cat $MNT/ckpt/$PID/image > f$i; done; ls $MNT/images")
	names := m.images()
	if len(names) != 3 {
		t.Fatalf("listed: %v", names)
	}
	m.ok(0, "cd $MNT/images; set -- *; mv $1 one; mv $2 two; mv $3 three; ls one; ls | tr '\n' ' ' | grep -x 'one three two '")
	m.ok(0, "for i in one two three; do cp -r $MNT/images/$i .; cmp $i/image $MNT/images/$i/image; done; cmp one/image f1; cmp two/image f2; cmp three/image f3")
	for i, n := range []string{"one", "two", "three"} {
		if gen := checkImage(t, m.out(n+"/image")); gen != i+1 {
			t.Errorf("%s is generation %d", n, gen)
		}
	}
	m.ok(0, `python3 -c '
import json
i = json.load(open("one/info")); assert i["pid"] and i["comm"] == "root" and len(i["root"]) == 64 and i["lost"], i
m = json.load(open("one/manifest.json")); assert m["manifest"]["tasks"][0]["pid"] == 1000, m
assert "taken by the fake" in open("one/log").read()'`)
	m.fails(0, "rmdir $MNT/images/one", "not empty")
	m.fails(0, "mv -T $MNT/images/one $MNT/images/two", "exists")
	m.fails(0, "mkdir $MNT/images/new", "")
	m.fails(0, "echo x > $MNT/images/one/image", "Permission denied")
	m.ok(0, "tar cf - -C $MNT/images one | tar xf - --one-top-level=t; cmp t/one/image one/image; rsync -a $MNT/images/ r; cmp r/two/image two/image")
	m.ok(0, "rm -r $MNT/images/two; rm -rf $MNT/images/one; ls $MNT/images | grep -x three")
	eventually(t, "the space of the removed ones is freed", func() bool {
		b, err := os.ReadFile(m.dir + "/log")
		return err == nil && strings.Contains(string(b), "freed")
	})
	m.ok(pid, "cat $MNT/ckpt/$PID/image > f; mv $MNT/images/root* $MNT/images/one; cmp f $MNT/images/one/image; ls $MNT/images/one | grep image")
}

// TestUnmountInUse ends a server while things go on: its users get errors, not hangs.
func TestUnmountInUse(t *testing.T) {
	m := mount(t)
	m.set("chunk-delay", 50)
	pid := target(t)
	m.ok(pid, "echo frozen > $MNT/ckpt/$PID/state")
	done := make(chan error, 1)
	go func() {
		_, err := m.sh(pid, "cat $MNT/ckpt/$PID/image > f")
		done <- err
	}()
	eventually(t, "it is being read", func() bool { return m.events("take") == 1 })
	time.Sleep(200 * time.Millisecond)
	if err := m.stop.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("the reader got a whole image from a server that was ended")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the reader hangs")
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("the server: %v", err)
	}
	if m.events("thaw") != 1 || m.events("close") != 1 {
		t.Error("the tree was not thawed or the checkpoint not closed")
	}
	m.start() // the store is whole and the folder free again
	if l := m.images(); len(l) != 0 {
		t.Errorf("listed: %v", l)
	}
}
