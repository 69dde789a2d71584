package fusefs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestReaders reads the image with the tools people use. Each must give one whole image and
// take one checkpoint.
func TestReaders(t *testing.T) {
	m := mount(t)
	pid := target(t)
	for _, tc := range []struct{ name, line string }{
		{"cat", `cat $MNT/ckpt/$PID/image > f`},
		{"cp", `cp $MNT/ckpt/$PID/image f`},
		{"cp -a", `cp -a $MNT/ckpt/$PID/image f`},
		{"cp sparse", `cp --sparse=always $MNT/ckpt/$PID/image f`},
		{"install", `install -m 600 $MNT/ckpt/$PID/image f`},
		{"dd 1M", `dd if=$MNT/ckpt/$PID/image of=f bs=1M status=none`},
		{"dd 512", `dd if=$MNT/ckpt/$PID/image of=f bs=512 status=none`},
		{"dd 64k fullblock", `dd if=$MNT/ckpt/$PID/image of=f bs=64k iflag=fullblock status=none`},
		{"tar", `tar cf a.tar -C $MNT/ckpt/$PID image && tar xf a.tar -O > f`},
		{"tar pipe", `tar cSf - -C $MNT/ckpt/$PID image | tar xf - -O > f`},
		{"rsync", `rsync $MNT/ckpt/$PID/image f`},
		{"rsync -a", `rsync -a $MNT/ckpt/$PID/image f`},
		{"rsync inplace", `rsync -W --inplace $MNT/ckpt/$PID/image f`},
		{"zstd stdin", `zstd -q -c < $MNT/ckpt/$PID/image | zstd -q -d > f`},
		{"zstd file", `zstd -q -f $MNT/ckpt/$PID/image -o z && zstd -q -d < z > f`},
		{"gzip", `gzip -c $MNT/ckpt/$PID/image | gzip -d > f`},
		{"python read", `python3 -c 'import sys; open("f","wb").write(open(sys.argv[1],"rb").read())' $MNT/ckpt/$PID/image`},
		{"python shutil", `python3 -c 'import sys,shutil; shutil.copyfile(sys.argv[1],"f")' $MNT/ckpt/$PID/image`},
		{"redirect", `exec 3< $MNT/ckpt/$PID/image; cat <&3 > f`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			before := m.events("take")
			m.ok(pid, "rm -f f; "+tc.line)
			checkImage(t, m.out("f"))
			if n := m.events("take") - before; n != 1 {
				t.Errorf("%d checkpoints were taken", n)
			}
		})
	}
	m.t = t
	if n := len(m.images()); n != 19 {
		t.Errorf("%d images are listed, want 19", n)
	}
}

// TestSizes compares what stat says before, during and after an open.
func TestSizes(t *testing.T) {
	m := mount(t)
	out := m.ok(target(t), `python3 - $MNT/ckpt/$PID/image <<'END'
import os, sys
p = sys.argv[1]
before = os.stat(p)
fd = os.open(p, os.O_RDONLY)
during, path = os.fstat(fd), os.stat(p)
n = 0
while True:
    b = os.read(fd, 1 << 20)
    if not b: break
    n += len(b)
after = os.fstat(fd)
os.close(fd)
assert before.st_size >= n > 0, (before, n)
assert during.st_size == path.st_size == after.st_size == n, (during, path, n)
assert before.st_ino == during.st_ino == path.st_ino
assert during.st_mtime == after.st_mtime
for s in before, during: assert s.st_blocks * 512 >= s.st_size
assert oct(before.st_mode) == '0o100400'
print('fine')
END`)
	if !strings.Contains(out, "fine") {
		t.Error(out)
	}
}

// TestWalkers walks the whole mount in the ways backups and searches do.
func TestWalkers(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	// Processes come and go meanwhile, so walkers may complain; what counts is what they did.
	for _, line := range []string{
		"grep -r nothing $MNT", "grep -R nothing $MNT", "find $MNT -type f -exec cat {} +", "tar cf /dev/full $MNT; tar cf - $MNT | cat", "du -a $MNT",
		"ls -lR $MNT", "cp -r $MNT copy", "rsync -a $MNT/ckpt copy2", "cat $MNT/ckpt/*/*", "zip -qr - $MNT/ckpt | cat",
	} {
		if out, err := m.sh(pid, "("+line+") > /dev/null"); err != nil {
			t.Logf("%s: %v, %d bytes of complaints", line, err, len(out))
		}
	}
	m.ok(pid, "stat $MNT/ckpt/$PID/image; test -r $MNT/ckpt/$PID/image; ls -la $MNT/ckpt/$PID/image; du $MNT/ckpt/$PID/image")
	if n := m.events("take"); n != 1 {
		t.Errorf("%d checkpoints were taken, want only the first", n)
	}
}

// TestConcurrentReaders makes sure that no reader gets bytes of another reader's checkpoint.
func TestConcurrentReaders(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, `for i in $(seq 16); do cat $MNT/ckpt/$PID/image > f$i & done
		for i in $(seq 17 24); do cp $MNT/ckpt/$PID/image f$i & done; wait`)
	gens := make(map[int]bool)
	for i := range 24 {
		gens[checkImage(t, m.out(fmt.Sprintf("f%d", i+1)))] = true
	}
	if len(gens) != 24 {
		t.Errorf("24 readers got %d checkpoints", len(gens))
	}
	// One process that opens twice sees one checkpoint, since its inode has one size.
	m.ok(pid, "cmp $MNT/ckpt/$PID/image $MNT/ckpt/$PID/image; python3 -c 'import sys; a=open(sys.argv[1],\"rb\"); b=open(sys.argv[1],\"rb\"); assert a.read()==b.read()' $MNT/ckpt/$PID/image")
}

// TestSeek reads at random.
func TestSeek(t *testing.T) {
	m := mount(t)
	m.set("chunk-delay", 1)
	m.ok(target(t), `python3 - $MNT/ckpt/$PID/image <<'END'
import os, sys, random
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
random.seed(7)
parts = []
for i in range(50):
    at = random.randrange(size)
    parts.append((at, os.pread(fd, 100000, at)))
whole = os.pread(fd, size, 0)
while len(whole) < size: whole += os.pread(fd, size, len(whole))
for at, b in parts:
    assert b and whole[at:at+len(b)] == b, at
assert os.pread(fd, 10, size) == b'' and os.pread(fd, 10, size + 5) == b''
END`)
}

// TestDeadlock reads the image of a process that waits for the reader.
func TestDeadlock(t *testing.T) {
	m := mount(t)
	m.fails(0, "cat $MNT/ckpt/$$/image; exit $?", "Resource deadlock avoided")
	m.fails(m.cmd.Process.Pid, "cat $MNT/ckpt/$PID/image", "Resource deadlock avoided")
	m.fails(0, "echo frozen > $MNT/ckpt/$$/state", "Resource deadlock avoided")
	if n := m.events("take") + m.events("freeze"); n != 0 {
		t.Errorf("%d trees were frozen", n)
	}
	m.fails(2, "cat $MNT/ckpt/$PID/image", "Operation not supported") // kthreadd
}

// interrupt runs a line and sends a signal to its process after a while, which must end it.
// Without the signal it would succeed.
func (m *mounted) interrupt(pid int, after time.Duration, sig syscall.Signal, line string) {
	m.t.Helper()
	cmd := exec.Command("bash", "-c", "exec "+line)
	cmd.Dir = m.out("")
	cmd.Env = append(os.Environ(), "MNT="+m.mnt, fmt.Sprintf("PID=%d", pid))
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	time.Sleep(after)
	if err := cmd.Process.Signal(sig); err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		m.t.Errorf("%s succeeded although it was interrupted", line)
	}
}

// TestInterrupt gives up a checkpoint at every stage: while it is taken and while it is read.
func TestInterrupt(t *testing.T) {
	m := mount(t)
	pid := target(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		m.set("take-delay", 3000)
		m.interrupt(pid, 300*time.Millisecond, sig, "cat $MNT/ckpt/$PID/image > f") // in open
		m.set("take-delay", 0)
		m.set("chunk-delay", 100)
		m.interrupt(pid, 500*time.Millisecond, sig, "cat $MNT/ckpt/$PID/image > f") // in read
	}
	eventually(t, "both checkpoints that were taken are closed", func() bool { return m.events("close") == 2 })
	m.set("chunk-delay", 0)
	if l := m.images(); len(l) != 0 {
		t.Errorf("interrupted checkpoints are listed: %v", l)
	}
	// A signal that nobody feels interrupts nothing.
	m.set("take-delay", 500)
	m.ok(pid, `cat $MNT/ckpt/$PID/image > f & sleep 0.1; kill -WINCH $!; kill -STOP $!; kill -CONT $!; wait $!`)
	checkImage(t, m.out("f"))
}

// TestEarlyClose is a reader that has seen enough.
func TestEarlyClose(t *testing.T) {
	m := mount(t)
	m.set("chunk-delay", 20)
	m.ok(target(t), "head -c 100000 $MNT/ckpt/$PID/image | wc -c")
	eventually(t, "the checkpoint is closed", func() bool { return m.events("close") == 1 })
	if l := m.images(); len(l) != 0 {
		t.Errorf("listed: %v", l)
	}
}

// TestSlowReader must not hold up the checkpoint.
func TestSlowReader(t *testing.T) {
	m := mount(t)
	m.ok(target(t), `exec 3< $MNT/ckpt/$PID/image
		for i in $(seq 100); do [ "$(ls $MNT/images)" ] && break; sleep 0.05; done
		ls $MNT/images | grep -q ^root- || exit 1
		dd bs=1000 count=10 <&3 2>/dev/null > f; rm -r $MNT/images/*; cat <&3 >> f`)
	checkImage(t, m.out("f"))
}

// TestFailures shows that every failure is an errno and a sentence.
func TestFailures(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.set("take-errno", int(syscall.EBUSY))
	m.fails(pid, "cat $MNT/ckpt/$PID/image > f", "Device or resource busy")
	for _, f := range []string{"explain", "info"} {
		if out := m.ok(pid, "head -n 30 $MNT/ckpt/$PID/"+f); !strings.Contains(out, "the fake was told so: device or resource busy") {
			t.Errorf("%s: %s", f, out)
		}
	}
	m.set("take-errno", 0)
	m.set("stream-errno", int(syscall.ENOSPC))
	m.fails(pid, "cat $MNT/ckpt/$PID/image > f", "No space left on device")
	if l := m.images(); len(l) != 0 {
		t.Errorf("a failed checkpoint is listed: %v", l)
	}
	m.set("stream-errno", 0)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > f")
	if out := m.ok(pid, "cat $MNT/ckpt/$PID/explain"); strings.Contains(out, "failed") || !strings.Contains(out, "is lost") {
		t.Errorf("explain after a success: %s", out)
	}
	m.fails(pid, "echo x > $MNT/ckpt/$PID/image", "Permission denied")
	m.fails(pid, "echo x > $MNT/ckpt/$PID/new", "Read-only file system")
	m.fails(pid, "rm $MNT/ckpt/$PID/info", "Operation not permitted")
	m.fails(pid, "cat $MNT/ckpt/99999999/image", "No such file")
}

// TestKernelOpen makes sure that an open by the kernel takes no second checkpoint.
func TestKernelOpen(t *testing.T) {
	m := mount(t)
	m.ok(target(t), `python3 - $MNT/ckpt/$PID/image <<'END'
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for i in range(3):
    try: fcntl.ioctl(fd, 0x80086601, b'        ')  # FS_IOC_GETFLAGS
    except OSError: pass
END`)
	if n := m.events("take"); n != 1 {
		t.Errorf("%d checkpoints were taken", n)
	}
}

// TestPolicyFile sets policies of a process, which its next checkpoint is taken with, and of no other.
func TestPolicyFile(t *testing.T) {
	m := mount(t)
	pid, other := target(t), target(t)
	const def = "files=changed\n"
	if out := m.ok(pid, "cat $MNT/ckpt/$PID/policy"); !strings.Contains(out, def) {
		t.Errorf("at first: %q", out)
	}
	m.ok(pid, "echo files=strict > $MNT/ckpt/$PID/policy; cat $MNT/ckpt/$PID/image > f")
	if out := m.ok(pid, "cat $MNT/ckpt/$PID/policy"); !strings.Contains(out, "files=strict\n") {
		t.Errorf("after a change: %q", out)
	}
	if out := m.ok(other, "cat $MNT/ckpt/$PID/policy"); !strings.Contains(out, def) {
		t.Errorf("of another process: %q", out)
	}
	if out := m.ok(pid, "cat $MNT/images/*/log"); !strings.Contains(out, "taken by the fake files=strict\n") {
		t.Errorf("the checkpoint was taken with %q", out)
	}
	m.fails(pid, "echo files=lax > $MNT/ckpt/$PID/policy", "Invalid argument")
	m.fails(pid, "echo nothing=1 > $MNT/ckpt/$PID/policy", "Invalid argument")
	m.ok(pid, "cat $MNT/ckpt/$PID/policy > p; echo default > $MNT/ckpt/$PID/policy")
	if out := m.ok(pid, "cat $MNT/ckpt/$PID/policy"); !strings.Contains(out, def) {
		t.Errorf("after default: %q", out)
	}
	if out := m.ok(pid, "cp p $MNT/ckpt/$PID/policy; cat $MNT/ckpt/$PID/policy"); !strings.Contains(out, "files=strict\n") {
		t.Errorf("copied back: %q", out)
	}
}

// TestMove moves an image away, with and without the tree.
func TestMove(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.fails(pid, "mv $MNT/ckpt/$PID/image f", "cannot remove")
	m.fails(pid, "rm $MNT/ckpt/$PID/image", "Operation not permitted")
	if out := m.ok(pid, "cat $MNT/ckpt/$PID/state; echo frozen > $MNT/ckpt/$PID/state; cat $MNT/ckpt/$PID/state"); out != "running\nfrozen\n" {
		t.Errorf("state: %q", out)
	}
	m.fails(pid, "rm $MNT/ckpt/$PID/image", "Operation not permitted") // nobody has read it
	m.fails(pid, "cat $MNT/ckpt/$PID/image > f; rm $MNT/ckpt/$PID/image", "Operation not permitted")
	m.ok(pid, "echo running > $MNT/ckpt/$PID/state; kill -0 $PID; echo frozen > $MNT/ckpt/$PID/state; rm -f f; mv $MNT/ckpt/$PID/image f")
	checkImage(t, m.out("f"))
	if m.events("kill") != 1 || m.events("thaw") != 1 || m.events("freeze") != 2 {
		t.Error("the tree was not thawed, frozen again and killed")
	}
	m.fails(target(t), "echo sleepy > $MNT/ckpt/$PID/state", "Invalid argument")
	m.ok(target(t), "echo killed > $MNT/ckpt/$PID/state")
	if m.events("kill") != 2 {
		t.Error("it was not killed")
	}
}

// TestDeadServer shows what readers and the next mount see of a server that was killed.
func TestDeadServer(t *testing.T) {
	m := mount(t)
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = m.cmd.Wait() // it was killed: that is what Wait says
	m.fails(0, "ls $MNT", "Transport endpoint is not connected")
	m.ok(0, "umount $MNT") // what ClearStale does, see TestClearStale
	m.start()
	m.ok(0, "cat $MNT/README")
	if fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.cmd.Process.Pid)); err != nil || len(fds) == 0 {
		t.Errorf("%v: %v", fds, err)
	}
}
