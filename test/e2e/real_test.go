package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestSleep carries sleep(1) through two restores; it ends as it should.
func TestSleep(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "sleep"), "1.5")
	harness.Eventually(t, "asleep", func() bool { return harness.State(r.PID) == 'S' })
	image := r.Dump() // the first freeze of this sleep …
	r.Alive()
	image2 := r.Dump("--kill") // … and the second
	r.WaitGone()
	for _, im := range []string{image, image2} {
		r.Again()
		got := harness.Must(t, harness.Binary(), "restore", im, "--wait")
		if strings.TrimSpace(got.Stdout) != itoa(r.PID) {
			t.Errorf("restore printed %q, not %d", got.Stdout, r.PID)
		}
		r.WaitGone()
	}
}

// TestAwk restores awk in the middle of a file of 40 MB.
func TestAwk(t *testing.T) {
	const lines = 1_000_000
	dir := harness.TempDir(t)
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range lines {
		fmt.Fprintf(w, "%d %d some more words on this line\n", i, 3*i)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	start := func() *harness.Program {
		r := harness.StartCommand(t, dir, harness.Tool(t, "awk"), "-v", "ready="+dir+"/ready", "-v", "result="+dir+"/result", "-v", "go="+dir+"/go",
			"-v", fmt.Sprint("lines=", lines), "-f", harness.Fixture(t, "large.awk"), filepath.Join(dir, "large"))
		r.WaitReady()
		return r
	}
	r := start()
	image := r.Dump()
	r.Pass(false)
	r.Restore(image)
	r.Pass(true)
}

// TestMake takes `make -j2` away in the middle of a build and lets it finish after a restore.
func TestMake(t *testing.T) {
	dir := harness.TempDir(t)
	const files = 16
	project(t, dir, files)
	r := harness.StartCommand(t, dir, "/bin/sh", "-c", "export TMPDIR="+dir+"; "+harness.Tool(t, "make")+" -j2 prog && ./prog > result.tmp && mv result.tmp result")
	harness.Eventually(t, "some objects", func() bool { return objects(dir) >= 2 })
	r.Dump() // it goes on
	image := r.Dump("--kill")
	r.WaitGone()
	if n := objects(dir); n >= files {
		t.Fatalf("all %d files were compiled before the checkpoint: the project is too small", n)
	}
	r.Restore(image)
	r.Finish()
	if b, _ := os.ReadFile(filepath.Join(dir, "out")); strings.Contains(string(b), "Error") || strings.Contains(string(b), "warning") {
		t.Errorf("make said: %s", b)
	}
}

// project writes a C project of which every file takes the compiler a moment.
func project(t *testing.T, dir string, files int) {
	t.Helper()
	var mk, main, decl strings.Builder
	mk.WriteString("OBJS =")
	for i := range files {
		fmt.Fprintf(&mk, " f%d.o", i)
		fmt.Fprintf(&decl, "int f%d(int);\n", i)
		fmt.Fprintf(&main, "\tsum += f%d(%d);\n", i, i)
		var src strings.Builder
		for j := range 300 {
			fmt.Fprintf(&src, "static int g%d(int x) { int s = 0; for (int i = 0; i < x; i++) s += (i * %d) ^ (s >> %d); return s; }\n", j, j+3, j%7)
		}
		fmt.Fprintf(&src, "int f%d(int x)\n{\n\tint s = 0;\n", i)
		for j := range 300 {
			fmt.Fprintf(&src, "\ts += g%d(x) & 0;\n", j)
		}
		src.WriteString("\treturn s + x;\n}\n")
		write(t, filepath.Join(dir, fmt.Sprintf("f%d.c", i)), []byte(src.String()))
	}
	mk.WriteString("\nprog: main.o $(OBJS)\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O2 -c -o $@ $<\n")
	want := files * (files - 1) / 2
	fmt.Fprintf(&decl, "#include <stdio.h>\nint main(void)\n{\n\tint sum = 0;\n%s\tputs(sum == %d ? \"ok\" : \"fail: wrong sum\");\n\treturn 0;\n}\n", main.String(), want)
	write(t, filepath.Join(dir, "main.c"), []byte(decl.String()))
	write(t, filepath.Join(dir, "Makefile"), []byte(mk.String()))
}

func objects(dir string) int {
	o, _ := filepath.Glob(filepath.Join(dir, "f*.o"))
	return len(o)
}

// TestTwoGiB takes and restores a process of 2 GiB, half of it in huge pages by chance of the
// machine, while it writes to its memory.
func TestTwoGiB(t *testing.T) {
	if free := available(t); free < 7<<30 {
		t.Logf("this machine has %d MiB to spare; the process gets 256 MiB instead of 2 GiB", free>>20)
		twoGiB(t, "256")
		return
	}
	twoGiB(t, "2048")
}

func twoGiB(t *testing.T, mib string) {
	r := harness.Start(t, "ram", mib)
	image := r.Dump()
	r.Alive()
	r.Pass(false)
	r.Restore(image)
	r.Pass(true)
}

// available is the memory in bytes that a process could still get.
func available(t *testing.T) int64 {
	t.Helper()
	for line := range strings.Lines(string(read(t, "/proc/meminfo"))) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Fatal("/proc/meminfo has no MemAvailable")
	return 0
}

// TestOutsidePipes restores a program whose input and output were pipes to somebody outside
// the tree: input has ended, output goes to NAME.out, and both stand on the list of losses.
func TestOutsidePipes(t *testing.T) {
	m := harness.NewMount(t)
	dir := harness.TempDir(t)
	in, out := pipePair(t), pipePair(t)
	c := exec.Command("/bin/bash", "-c", `exec 0<&3 1>&4 2>&4 3<&- 4>&-; echo before; echo > ready; read -r line; echo "after: status $? line <$line>"; echo ok > result`)
	c.ExtraFiles = []*os.File{in.r, out.w}
	r := harness.StartWith(t, dir, c)
	r.WaitReady()

	explain := harness.Must(t, harness.Binary(), "explain", itoa(r.PID))
	harness.Say(t, "explain", explain.Stdout, "lost: pid "+itoa(r.PID), "fd 0", "fd 1") // 2 is the same open file as 1
	image := r.Dump("--kill")
	r.WaitGone()
	r.Again()
	harness.Must(t, "cp", image, m.Restore("piped"))
	r.Finish()
	got := string(read(t, m.Restore("piped.out")))
	if got != "after: status 1 line <>\n" {
		t.Errorf("piped.out holds %q", got)
	}
	harness.Say(t, "log", m.Log("piped"), "fd 0", "fd 1")
}

type pair struct{ r, w *os.File }

func pipePair(t *testing.T) pair {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return pair{r, w}
}

// TestTerminal restores a program that had a terminal which is gone.
func TestTerminal(t *testing.T) {
	m := harness.NewMount(t)
	master, slave := openPTY(t)
	dir := harness.TempDir(t)
	c := exec.Command("/bin/bash", "-c", `trap "" HUP; echo on the terminal; echo > ready; while [ ! -e go ]; do sleep 0.02; done; echo later; echo ok > result`)
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	r := harness.StartWith(t, dir, c)
	r.WaitReady()
	explain := harness.Must(t, harness.Binary(), "explain", itoa(r.PID))
	harness.Say(t, "explain", explain.Stdout, "lost: pid "+itoa(r.PID), "terminal")
	image := r.Dump("--kill")
	r.WaitGone()
	slave.Close()
	master.Close()
	r.Again()
	harness.Must(t, "cp", image, m.Restore("tty"))
	r.Pass(true)
	if got := string(read(t, m.Restore("tty.out"))); got != "later\n" {
		t.Errorf("tty.out holds %q", got)
	}
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

// TestShow prints an image as text and as JSON.
func TestShow(t *testing.T) {
	r := harness.Start(t, "files")
	image := r.Dump()
	text := harness.Must(t, harness.Binary(), "show", image)
	harness.Say(t, "show", text.Stdout, itoa(r.PID), "files", "pipe", "eventfd", "epoll", "/dev/null")
	js := harness.Must(t, harness.Binary(), "show", "--json", image)
	if got := harness.RunIn(t, "", strings.NewReader(js.Stdout), harness.Python(t), "-c",
		"import json,sys; m=json.load(sys.stdin); print(m.get('tasks', m.get('manifest',{}).get('tasks'))[0]['pid'])"); strings.TrimSpace(got.Stdout) != itoa(r.PID) {
		t.Errorf("show --json: %v", got)
	}
	r.Pass(false)
}

// TestStdout dumps into a pipe and restores from one.
func TestStdout(t *testing.T) {
	r := harness.Start(t, "ring", "5")
	dir := harness.TempDir(t)
	if got := harness.Shell(t, fmt.Sprintf("set -o pipefail; %s dump %d -o - | zstd -q > %s/i", harness.Binary(), r.PID, dir)); got.Code != 0 {
		t.Fatal(got)
	}
	r.Kill()
	r.Again()
	if got := harness.Shell(t, fmt.Sprintf("set -o pipefail; cd %[2]s; zstd -q -d < %[2]s/i | %[1]s restore -", harness.Binary(), dir)); got.Code != 0 {
		t.Fatal(got)
	}
	r.Restored()
	r.Pass(true)
}

// TestDemo runs the demonstration that the README names.
func TestDemo(t *testing.T) {
	got := harness.Must(t, harness.Binary(), "demo")
	harness.Say(t, "demo", got.Stdout+got.Stderr, "cat", "cp")
}
