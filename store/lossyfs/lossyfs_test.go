package lossyfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// file makes a file whose content and name are durable, in the root.
func (fs *FS) file(name string, data []byte) *node {
	n := fs.add(syscall.S_IFREG | 0o600)
	n.data = slices.Clone(data)
	fs.persist(n)
	fs.root.bind(rebind{{name, n}})
	fs.persist(fs.root)
	return n
}

// states draws many states after a cut and counts how often describe says each thing.
func (fs *FS) states(t *testing.T, describe func(root *node) string) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for seed := range uint64(500) {
		after, _ := fs.After(rand.New(rand.NewPCG(seed, 1)), Lies{})
		again, _ := fs.After(rand.New(rand.NewPCG(seed, 1)), Lies{})
		s := describe(after.root)
		if s != describe(again.root) {
			t.Fatalf("seed %d: two states", seed)
		}
		seen[s]++
	}
	return seen
}

func names(root *node) string {
	var list []string
	for s := range root.entries {
		list = append(list, s)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func wantStates(t *testing.T, seen map[string]int, want ...string) {
	t.Helper()
	for _, s := range want {
		if seen[s] == 0 {
			t.Errorf("%q never happens", s)
		}
		delete(seen, s)
	}
	if len(seen) > 0 {
		t.Errorf("impossible: %v", seen)
	}
}

// TestNames: a rename is whole or not there, any subset of changes may have happened, and
// a synced folder has one state.
func TestNames(t *testing.T) {
	fs := New(Lies{})
	a, b := fs.file("a", nil), fs.file("b", nil)
	fs.root.bind(rebind{{"a", nil}, {"c", a}})
	fs.root.bind(rebind{{"b", nil}})
	wantStates(t, fs.states(t, names), "a b", "b c", "a", "c")
	if b.links != 0 || a.links != 1 {
		t.Errorf("%d and %d links", b.links, a.links)
	}
	fs.sync(fs.root)
	wantStates(t, fs.states(t, names), "c")
}

// TestContent: what was synced stays, whatever comes later; what was not may be anything
// that is said of it.
func TestContent(t *testing.T) {
	fs := New(Lies{})
	old, fresh := bytes.Repeat([]byte("o"), 2*sector+100), bytes.Repeat([]byte("n"), 3*sector)
	n := fs.file("f", old)
	n.put(write{int64(len(old)), fresh})
	seen := fs.states(t, func(root *node) string {
		b := root.entries["f"].data
		if !bytes.HasPrefix(b, old) || len(b) > len(old)+len(fresh) {
			t.Fatalf("%d bytes, %q", len(b), b[:min(len(b), len(old))])
		}
		rest := b[len(old):]
		switch {
		case len(rest) == 0:
			return "nothing"
		case bytes.Equal(rest, fresh):
			return "everything"
		case len(bytes.Trim(rest, "\x00")) == 0:
			return "zeros"
		case bytes.HasPrefix(fresh, rest):
			return "cut"
		}
		return "mixed"
	})
	wantStates(t, seen, "nothing", "everything", "zeros", "cut", "mixed")
	fs.sync(n)
	wantStates(t, fs.states(t, func(root *node) string { return fmt.Sprint(len(root.entries["f"].data)) }), "2660")
}

// TestOverwrite: sectors that hold durable bytes are old or new.
func TestOverwrite(t *testing.T) {
	fs := New(Lies{})
	n := fs.file("f", bytes.Repeat([]byte("o"), 2*sector))
	n.put(write{0, bytes.Repeat([]byte("n"), 2*sector)})
	seen := fs.states(t, func(root *node) string {
		b := root.entries["f"].data
		for i := range 2 {
			if s := b[i*sector : (i+1)*sector]; len(bytes.Trim(s, string(s[0]))) != 0 {
				t.Fatalf("sector %d is torn", i)
			}
		}
		return string(b[0]) + string(b[sector])
	})
	wantStates(t, seen, "oo", "on", "no", "nn")
}

func TestTruncate(t *testing.T) {
	fs := New(Lies{})
	n := fs.file("f", []byte("durable"))
	n.put(write{off: 0})
	n.put(write{0, []byte("x")})
	seen := fs.states(t, func(root *node) string { return string(root.entries["f"].data) })
	if seen["durable"] == 0 || seen["x"] == 0 || seen[""] == 0 {
		t.Errorf("%v", seen)
	}
}

func TestLies(t *testing.T) {
	fs := New(Lies{Files: true, Folders: true})
	n := fs.add(syscall.S_IFREG)
	fs.root.bind(rebind{{"f", n}})
	n.put(write{0, []byte("x")})
	fs.sync(n)
	fs.sync(fs.root)
	wantStates(t, fs.states(t, func(root *node) string {
		switch f := root.entries["f"]; {
		case f == nil:
			return "no file"
		case string(f.data) == "x":
			return "file"
		}
		return "file without what was written"
	}), "no file", "file", "file without what was written")
}

// TestMounted works on a mount with the system's tools, cuts the power, and looks at what
// is there.
func TestMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: nothing can be mounted")
		return
	}
	fs, mnt := New(Lies{}), t.TempDir()
	unmount, err := fs.Mount(mnt)
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) (string, error) {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "M="+mnt)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(`mkdir $M/d $M/e; printf hello > $M/d/x; ln $M/d/x $M/d/y; printf longer > $M/d/z; truncate -s 4 $M/d/z
		mv $M/d/z $M/d/w; rm $M/d/x; rmdir $M/e; sync $M/d/y $M/d/w $M/d $M; printf unsynced > $M/d/u; cat $M/d/*; ls $M/d; ! mv -n --no-copy $M/d/w $M/v`)
	if !strings.HasPrefix(out, "unsyncedlonghello"+"u\nw\ny\n") || err != nil {
		t.Errorf("%v: %q", err, out)
	}
	fs.CutAt(Plan{Counts: func(c string) bool { return c == "remove w" }, Skip: 1, Finish: true})
	if out, err := run("rm $M/d/w; rm $M/d/y"); err == nil || !strings.Contains(out, "Input/output error") {
		t.Errorf("after the cut: %v: %q", err, out)
	}
	<-fs.Cut()
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if tr := fs.Trace(); tr[len(tr)-1] != "remove y; then the power went" {
		t.Errorf("%q", tr)
	}
	seen := fs.states(t, func(root *node) string { return strings.TrimPrefix(names(root.entries["d"]), "u ") })
	delete(seen, "u") // u alone
	wantStates(t, seen, "w y", "w", "y", "")
	wantSaved(t, fs)
}

// wantSaved saves a filesystem, loads it again and compares.
func wantSaved(t *testing.T, fs *FS) {
	t.Helper()
	dir := t.TempDir()
	after, _ := fs.After(rand.New(rand.NewPCG(1, 1)), Lies{})
	if err := after.Save(dir); err != nil {
		t.Fatal(err)
	}
	back, err := Load(dir, Lies{})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range after.root.entries["d"].entries {
		got, err := os.ReadFile(filepath.Join(dir, "d", name))
		if err != nil || !bytes.Equal(got, n.data) || !bytes.Equal(back.root.entries["d"].kept[name].durable, n.data) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if a, b := names(after.root.entries["d"]), names(back.root.entries["d"]); a != b {
		t.Errorf("%q loaded from %q", b, a)
	}
}
