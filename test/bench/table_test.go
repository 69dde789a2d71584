package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// row is one shape of process, see test/progs/shape.c.
type row struct {
	name  string
	shape []string
	fork  bool // is its stop compared with its own fork(2)
}

// rows are what is measured. CKPTFS_BENCH_ROWS, a regular expression, chooses some.
var rows = []row{
	{"1 MiB", []string{"mib=1"}, true},
	{"1 MiB, random", []string{"mib=1", "random=1"}, true},
	{"64 MiB", []string{"mib=64"}, true},
	{"512 MiB", []string{"mib=512"}, true},
	{"512 MiB, huge pages", []string{"mib=512", "huge=1"}, true},
	{"512 MiB, random", []string{"mib=512", "random=1"}, true},
	{"1 GiB", []string{"mib=1024"}, true},
	{"4 GiB", []string{"mib=4096"}, true},
	{"4 GiB, random", []string{"mib=4096", "random=1"}, true},
	{"512 MiB, 1 % written a second", []string{"mib=512", "dirty=1"}, true},
	{"512 MiB, 10 % written a second", []string{"mib=512", "dirty=10"}, true},
	{"512 MiB, 50 % written a second", []string{"mib=512", "dirty=50"}, true},
	{"16 threads", []string{"threads=16"}, false},
	{"200 threads", []string{"threads=200"}, false},
	{"2000 threads", []string{"threads=2000"}, false},
	{"50 processes", []string{"procs=49"}, false},
	{"500 processes", []string{"procs=499"}, false},
	{"10 descriptors", []string{"fds=10"}, false},
	{"1000 descriptors", []string{"fds=1000"}, false},
	{"8000 descriptors", []string{"fds=8000"}, false},
	{"19,000 descriptors", []string{"fds=19000"}, false},
	{"50 mappings", []string{"maps=50"}, false},
	{"5000 mappings", []string{"maps=5000"}, false},
	{"60,000 mappings", []string{"maps=60000"}, false},
}

// spread is what the rounds have measured, in milliseconds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(ms []float64) *spread {
	if len(ms) == 0 {
		return nil
	}
	return &spread{middle(ms), slices.Min(ms), slices.Max(ms)}
}

func (s *spread) String() string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.3g (%.3g to %.3g)", s.Median, s.Min, s.Max)
}

// measured is a line of the result.
type measured struct {
	Row     string  `json:"row"`
	Tool    string  `json:"tool"`
	Dump    *spread `json:"dump_ms"`
	Stop    *spread `json:"stop_ms,omitempty"`
	Restore *spread `json:"restore_ms"`
	Fork    *spread `json:"fork_ms,omitempty"` // of the process, by itself
	Copy    *spread `json:"copy_ms"`           // of as many bytes as the image has, to such a file
	True    *spread `json:"true_ms"`           // to run /bin/true
	Fill    *spread `json:"fill_ms,omitempty"` // to fill as much memory with UFFDIO_COPY, by two threads

	dump, stop, restore, fork, copy, exec, fill []float64
}

// BenchmarkTable measures a dump of a process that goes on, how long it is still, and a restore, for many shapes of
// process, and in the same rounds what bounds them. It prints a table, and JSON to the file CKPTFS_BENCH_JSON. If criu
// is there and works, it is measured in the same rounds.
func BenchmarkTable(b *testing.B) {
	chosen := regexp.MustCompile(os.Getenv("CKPTFS_BENCH_ROWS"))
	criu := findCRIU(b)
	var all []*measured
	by := map[string]*measured{}
	for b.Loop() {
		for _, r := range rows {
			if !chosen.MatchString(r.name) {
				continue
			}
			tools := []string{"ckptfs"}
			if criu != "" {
				tools = append(tools, "criu")
			}
			for _, tool := range tools {
				m := by[r.name+tool]
				if m == nil {
					m = &measured{Row: r.name, Tool: tool}
					by[r.name+tool], all = m, append(all, m)
				}
				if tool == "criu" {
					m.criu(b, r, criu)
				} else {
					m.round(b, r)
				}
			}
		}
	}
	report(b, all)
}

// round measures ckptfs once.
func (m *measured) round(b *testing.B, r row) {
	p := m.start(b, r)
	dir := scratch(b)
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "image")
	var out string
	m.dump = append(m.dump, 1000*seconds(func() {
		out = harness.Must(b, harness.Binary(), "dump", strconv.Itoa(p.PID), "-o", image, "-v").Stderr
	}))
	still := regexp.MustCompile(`(?:was|were) still for ([0-9.]+) ms`).FindStringSubmatch(out)
	if still == nil {
		b.Fatalf("the dump does not tell how long it was still: %s", out)
	}
	ms, err := strconv.ParseFloat(still[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	m.stop = append(m.stop, ms)
	m.copy = append(m.copy, 1000*seconds(func() { run(b, "cp", image, image+".copy") }))
	m.exec = append(m.exec, 1000*seconds(func() { run(b, "/bin/true") }))
	p.Kill()
	if n := fileSize(b, image); n > 1<<20 {
		m.fill = append(m.fill, fillMemory(b, int(n)))
	}
	m.restore = append(m.restore, 1000*seconds(func() { p.Restore(image) }))
	p.Kill()
}

func (m *measured) start(b *testing.B, r row) *harness.Program {
	shape := r.shape
	if r.fork {
		shape = append(slices.Clone(shape), "fork=1")
	}
	p := harness.Start(b, "shape", shape...)
	if r.fork {
		text, err := os.ReadFile(filepath.Join(p.Dir, "result.fork"))
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
		if err != nil {
			b.Fatal(err)
		}
		m.fork = append(m.fork, ns/1e6)
	}
	return p
}

// ratio is one median by another.
func ratio(a, b *spread) string {
	if a == nil || b == nil || b.Median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3g", a.Median/b.Median)
}

// writeJSON writes what was measured to the file CKPTFS_BENCH_JSON, with suffix behind its name.
func writeJSON(b *testing.B, suffix string, rows any) {
	path := os.Getenv("CKPTFS_BENCH_JSON")
	if path == "" {
		return
	}
	text, err := json.MarshalIndent(struct {
		Date time.Time `json:"date"`
		Rows any       `json:"rows"`
	}{time.Now(), rows}, "", "\t")
	if err == nil {
		err = os.WriteFile(path+suffix, append(text, '\n'), 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// scratch is a folder in memory.
func scratch(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "ckptfs-bench-")
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

// findCRIU returns the path of a criu that works here, or "".
func findCRIU(b *testing.B) string {
	path, err := exec.LookPath("criu")
	if err != nil {
		return ""
	}
	if r := harness.Run(b, path, "check"); r.Code != 0 {
		b.Logf("criu does not work here, and is left out: %s%s", r.Stdout, r.Stderr)
		return ""
	}
	return path
}

// criu measures criu once. Its dump ends with the target's end.
func (m *measured) criu(b *testing.B, r row, criu string) {
	p := m.start(b, r)
	dir := scratch(b)
	defer os.RemoveAll(dir)
	m.dump = append(m.dump, 1000*seconds(func() {
		run(b, criu, "dump", "-t", strconv.Itoa(p.PID), "-D", dir, "-o", "dump.log")
	}))
	m.exec = append(m.exec, 1000*seconds(func() { run(b, "/bin/true") }))
	p.WaitGone()
	m.restore = append(m.restore, 1000*seconds(func() { run(b, criu, "restore", "-d", "-D", dir, "-o", "restore.log") }))
	p.Kill()
}

func report(b *testing.B, all []*measured) {
	var t strings.Builder
	t.WriteString("\n| process | tool | dump ms | stop ms | restore ms | dump/copy | stop/fork | restore/copy | restore/fill | dump, restore / exec of true |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, m := range all {
		m.Dump, m.Stop, m.Restore, m.Fork, m.Copy, m.True = spreadOf(m.dump), spreadOf(m.stop), spreadOf(m.restore), spreadOf(m.fork), spreadOf(m.copy), spreadOf(m.exec)
		m.Fill = spreadOf(m.fill)
		fmt.Fprintf(&t, "| %s | %s | %v | %v | %v | %s | %s | %s | %s | %s, %s |\n", m.Row, m.Tool, m.Dump, m.Stop, m.Restore,
			ratio(m.Dump, m.Copy), ratio(m.Stop, m.Fork), ratio(m.Restore, m.Copy), ratio(m.Restore, m.Fill), ratio(m.Dump, m.True), ratio(m.Restore, m.True))
	}
	fmt.Println(t.String())
	writeJSON(b, "", all)
}
