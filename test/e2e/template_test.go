package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptfs/ckptfs/test/harness"
)

// stored is a checkpoint of a program in the store of a mount.
type stored struct {
	t   *testing.T
	m   *harness.Mount
	dir string // images/NAME
	n   int    // restores
}

// store takes a checkpoint of a program and kills it.
func store(t *testing.T, m *harness.Mount, r *harness.Program) *stored {
	t.Helper()
	have := len(m.Images())
	harness.Must(t, "cat", m.Image(r))
	names := m.WaitImages(have + 1)
	r.Kill()
	for _, n := range names {
		if strings.Contains(n, "-"+itoa(r.PID)+"-") {
			return &stored{t: t, m: m, dir: filepath.Join(m.Dir, "images", n)}
		}
	}
	t.Fatalf("no image of %d in %q", r.PID, names)
	return nil
}

func (s *stored) template() string { return filepath.Join(s.dir, "template") }

// on makes the template and returns its process.
func (s *stored) on() int {
	s.t.Helper()
	write(s.t, s.template(), []byte("on\n"))
	m := regexp.MustCompile(`^on, takes \d+ MiB of memory in process (\d+)\n$`).FindStringSubmatch(string(read(s.t, s.template())))
	if m == nil {
		s.t.Fatalf("the template says %q", read(s.t, s.template()))
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// restore brings the program back and returns how much memory it shares with the template.
func (s *stored) restore(r *harness.Program) int64 {
	s.t.Helper()
	s.n++
	r.Again()
	name := fmt.Sprintf("%s-%d", filepath.Base(s.dir), s.n)
	if got := harness.Run(s.t, "cp", filepath.Join(s.dir, "image"), s.m.Restore(name)); got.Code != 0 {
		s.t.Fatalf("%v\n%s", got, s.m.Log(name))
	}
	r.Restored()
	var st struct{ Shared int64 }
	if err := json.Unmarshal([]byte(s.m.Status(name)), &st); err != nil {
		s.t.Fatal(err)
	}
	if said := strings.Contains(s.m.Log(name), "are shared with the template"); said != (st.Shared > 0) {
		s.t.Errorf("%d bytes are shared, and the log says %s", st.Shared, s.m.Log(name))
	}
	return st.Shared
}

// rollup returns a field of /proc/PID/smaps_rollup of a tree, in bytes.
func rollup(t *testing.T, r *harness.Program, field string) (n int64) {
	t.Helper()
	for _, pid := range r.Tree() {
		text := string(read(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid)))
		m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %s", field, text)
		}
		kib, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n += kib << 10
	}
	return n
}

// templatesLeft lists the processes of templates below a daemon: the template, and two that stand by.
func templatesLeft(t *testing.T, daemon int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "(ckptfs-template)") {
			continue
		}
		var pid, ppid int
		var state string
		if _, err := fmt.Sscanf(string(b), "%d (ckptfs-template) %s %d", &pid, &state, &ppid); err == nil {
			parents[pid] = ppid
		}
	}
	for pid := range parents {
		for up := pid; up != 0; up = parents[up] {
			if up == daemon {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// TestClones restores a tree ten times from a template, each time after it has written over all of its memory, and while
// a child of the restore before, which shares memory with both, goes on doing so.
func TestClones(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "clones")
	before := r.Look()
	huge := rollup(t, r, "AnonHugePages")
	s := store(t, m, r)
	harness.Say(t, "the template", string(read(t, s.template())), "off")
	s.on()
	const mib = 3 * (24 + 8 + 8 + 4 + 4 + 4) << 20 // at the least: three processes without the sparse and special areas
	left := 0
	for i := range 10 {
		if n := s.restore(r); n < mib {
			t.Fatalf("restore %d shares %d bytes of memory, want %d", i, n, mib)
		}
		r.Same(before, "after a restore from a template")
		if rss, pss := rollup(t, r, "Rss"), rollup(t, r, "Pss"); i > 0 && pss > rss*6/10 {
			t.Errorf("of %d bytes of memory the tree has %d for itself", rss, pss)
		}
		if n := rollup(t, r, "AnonHugePages"); n > huge {
			t.Errorf("%d bytes of huge pages, there were %d", n, huge)
		}
		if left != 0 {
			end(t, left)
		}
		os.Remove(filepath.Join(r.Dir, "scribbling"))
		os.Remove(filepath.Join(r.Dir, "left"))
		write(t, filepath.Join(r.Dir, "scribble"), nil)
		harness.Eventually(t, "writing over all memory", func() bool {
			r.Alive()
			_, err := os.Stat(filepath.Join(r.Dir, "scribbling"))
			return err == nil
		})
		r.Alive()
		left, _ = strconv.Atoi(strings.TrimSpace(string(read(t, filepath.Join(r.Dir, "left")))))
		tree := r.Tree()
		for _, pid := range tree {
			if pid != left {
				signal(t, pid, "KILL")
			}
		}
		for _, pid := range tree {
			harness.Eventually(t, "the end of the tree", func() bool { return pid == left || !harness.Exists(pid) })
		}
		if err := os.Remove(filepath.Join(r.Dir, "scribble")); err != nil {
			t.Fatal(err)
		}
	}
	if s := harness.State(left); s == 0 || s == 'Z' {
		t.Fatalf("the process that was left behind has ended: %q", read(t, filepath.Join(r.Dir, "result")))
	}
	s.restore(r)
	end(t, left)
	r.Same(before, "after the last restore")
	r.Pass(true)
	info := string(read(t, filepath.Join(s.dir, "info")))
	var told struct{ Template int64 }
	if err := json.Unmarshal([]byte(info), &told); err != nil || told.Template < mib {
		t.Errorf("%v: info says %s", err, info)
	}
	write(t, s.template(), []byte("off"))
	harness.Say(t, "the template", string(read(t, s.template())), "off")
	if n := templatesLeft(t, m.Daemon()); len(n) != 0 {
		t.Errorf("processes %v are left", n)
	}
	if n := s.restore(r); n != 0 {
		t.Errorf("%d bytes are shared without a template", n)
	}
	r.Same(before, "after a restore without a template")
	r.Kill()

	// What was restored from a template can be checkpointed as anything else.
	s.on()
	s.restore(r)
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	r.Same(before, "after a checkpoint of what a template was used for")
	r.Pass(true)
}

// end kills a process and waits until it is gone.
func end(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("the process %d that was left behind: %v", pid, err)
	}
	harness.Eventually(t, "its end", func() bool { return !harness.Exists(pid) })
}

// TestTemplatePrograms restores programs from templates that have other memory, threads or files beside.
func TestTemplatePrograms(t *testing.T) {
	m := harness.NewMount(t)
	for _, p := range []program{
		{"mem_anon", "mem_anon", nil, true},
		{"ram_huge", "ram", []string{"64"}, true},
		{"ram_small", "ram", []string{"64", "small"}, true},
		{"go_http", "gohttp", nil, false},
		{"python_multi", "multi.py", nil, false},
		{"python_pool", "pool.py", nil, false},
		{"java", "Server.java", nil, false},
	} {
		t.Run(p.name, func(t *testing.T) {
			r := harness.Start(t, p.prog, p.args...)
			before := look(p, r)
			s := store(t, m, r)
			s.on()
			for range 2 {
				if s.restore(r) == 0 {
					t.Error("no memory is shared")
				}
				if p.still {
					r.Same(before, "after a restore from a template")
				}
				r.Alive()
				r.Kill()
			}
			s.restore(r)
			r.Pass(true)
			write(t, s.template(), []byte("off"))
		})
	}
}

// TestTemplateEnds has templates end in every way: killed, with their image, with the mount, with a daemon that is killed.
// What shares memory with one lives on.
func TestTemplateEnds(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "clones")
	before := r.Look()
	s := store(t, m, r)
	if got := harness.Shell(t, "echo maybe > "+s.template()); got.Code == 0 {
		t.Error("takes a word that is none")
	}

	pid := s.on()
	signal(t, pid, "TERM") // it is stopped
	signal(t, pid, "CONT")
	if n := len(templatesLeft(t, m.Daemon())); n != 3 {
		t.Errorf("a template has %d processes", n)
	}
	s.restore(r)
	signal(t, pid, "KILL")
	harness.Eventually(t, "off", func() bool { return string(read(t, s.template())) == "off\n" })
	r.Same(before, "after the end of the template")
	r.Kill()
	if n := s.restore(r); n != 0 {
		t.Errorf("%d bytes are shared with a template that was killed", n)
	}
	r.Kill()

	s.on()
	for _, pid := range templatesLeft(t, m.Daemon()) { // those that stand by
		if pid != s.on() {
			signal(t, pid, "KILL")
		}
	}
	s.restore(r) // with or without it
	r.Kill()
	if s.restore(r) == 0 {
		t.Error("nothing is shared after those that stood by were killed")
	}

	write(t, s.template(), []byte("off"))
	r.Same(before, "after the end of the template")
	if s.on(); len(templatesLeft(t, m.Daemon())) != 3 {
		t.Errorf("processes of the second template: %v", templatesLeft(t, m.Daemon()))
	}
	renamed := filepath.Join(filepath.Dir(s.dir), "mine")
	harness.Must(t, "mv", s.dir, renamed)
	s.dir = renamed
	harness.Say(t, "the template of a renamed image", string(read(t, s.template())), "on")
	daemon := m.Daemon()
	m.KillDaemon()
	harness.Eventually(t, "the end of the template with its daemon", func() bool { return len(allTemplates(t)) == 0 })
	r.Same(before, "after the end of the daemon")
	m.Again()
	if m.Daemon() == daemon {
		t.Error("the daemon is the old one")
	}
	r.Pass(true)

	s.on()
	s.restore(r)
	harness.Must(t, "rm", "-r", s.dir)
	if n := allTemplates(t); len(n) != 0 {
		t.Errorf("processes %v of a removed image", n)
	}
	r.Same(before, "after the end of the image")
	r.Pass(true)
}

// allTemplates lists the processes of templates of this run: their executable is the stub of a daemon that may be gone.
func allTemplates(t *testing.T) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && string(b) == "ckptfs-template\n" {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// TestTemplateRefused asks for templates of what has no memory to share, and ends a mount that has one.
func TestTemplateRefused(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "lonely")
	s := store(t, m, r)
	if got := harness.Shell(t, "echo on > "+s.template()); got.Code == 0 {
		t.Error("makes a template of nothing")
	}
	harness.Say(t, "the log", string(read(t, filepath.Join(m.Store, "mount.log"))), "no process of the image has private memory that is worth sharing")
	if s.restore(r) != 0 {
		t.Error("shares something")
	}
	r.Kill()

	r = harness.Start(t, "ram", "16", "small")
	s = store(t, m, r)
	pid := s.on()
	s.restore(r)
	m.Unmount()
	harness.Eventually(t, "the end of the template with its mount", func() bool { return !harness.Exists(pid) })
	r.Pass(true)
}
