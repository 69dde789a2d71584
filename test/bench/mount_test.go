package bench

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// mountRows are what is measured through a mount. CKPTFS_BENCH_ROWS chooses some.
var mountRows = []row{
	{name: "1 MiB", shape: []string{"mib=1"}},
	{name: "64 MiB", shape: []string{"mib=64"}},
	{name: "512 MiB", shape: []string{"mib=512"}},
	{name: "512 MiB, random", shape: []string{"mib=512", "random=1"}},
	{name: "512 MiB, 10 % written a second", shape: []string{"mib=512", "dirty=10"}},
	{name: "1 GiB", shape: []string{"mib=1024"}},
	{name: "4 GiB", shape: []string{"mib=4096"}},
	{name: "200 threads", shape: []string{"threads=200"}},
	{name: "50 processes", shape: []string{"procs=49"}},
	{name: "8000 descriptors", shape: []string{"fds=8000"}},
	{name: "5000 mappings", shape: []string{"maps=5000"}},
}

// throughMount is a line of the result. Times are in milliseconds.
type throughMount struct {
	Row     string  `json:"row"`
	Bytes   int64   `json:"bytes"` // of the image
	File    *spread `json:"cat_to_file_ms"`
	Null    *spread `json:"cat_to_null_ms"`
	Again   *spread `json:"cat_again_ms"`            // a second checkpoint, of which the store has nearly everything
	Stored  *spread `json:"cat_stored_ms"`           // images/NAME/image to /dev/null
	Upload  *spread `json:"cp_to_restore_ms"`        // of the file
	Linked  *spread `json:"cp_images_to_restore_ms"` // of the stored image
	Copy    *spread `json:"copy_ms"`                 // of as many bytes to such a file
	PeakMiB float64 `json:"daemon_peak_mib"`         // the highest of all rounds
	During  *spread `json:"rate_during"`             // how fast the target works, of how fast it did before
	After   *spread `json:"rate_after"`

	file, null, again, stored, upload, linked, copy, during, after []float64
}

// BenchmarkMount measures checkpoints and restores through a mount with its store, how much memory the process behind it
// takes, and how much slower the target works meanwhile and afterwards. The store and the files are in memory.
func BenchmarkMount(b *testing.B) {
	chosen := regexp.MustCompile(os.Getenv("CKPTFS_BENCH_ROWS"))
	var all []*throughMount
	for _, r := range mountRows {
		if chosen.MatchString(r.name) {
			all = append(all, &throughMount{Row: r.name})
		}
	}
	for b.Loop() {
		for _, m := range all {
			for _, r := range mountRows {
				if r.name == m.Row {
					m.round(b, r)
					m.slowed(b, r)
				}
			}
		}
	}
	reportMount(b, all)
}

// round measures all but the target's own work, with a new mount.
func (m *throughMount) round(b *testing.B, r row) {
	dir := scratch(b)
	defer os.RemoveAll(dir)
	mnt := harness.NewMountAt(b, filepath.Join(dir, "store"))
	defer mnt.Unmount()
	p := harness.Start(b, "shape", r.shape...)
	file, null := filepath.Join(dir, "image"), "/dev/null"
	timed := func(to *[]float64, argv ...string) { *to = append(*to, 1000*seconds(func() { run(b, argv...) })) }
	cat := func(to *[]float64, from, out string) { timed(to, "sh", "-c", `exec cat "$0" > "$1"`, from, out) }

	cat(&m.file, mnt.Image(p), file)
	m.Bytes = fileSize(b, file)
	cat(&m.copy, file, file+".copy")
	if err := os.Remove(file + ".copy"); err != nil {
		b.Fatal(err)
	}
	name := mnt.WaitImages(1)[0]
	cat(&m.stored, filepath.Join(mnt.Dir, "images", name, "image"), null)
	cat(&m.again, mnt.Image(p), null)
	p.Kill()
	timed(&m.upload, "cp", file, mnt.Restore("file"))
	p.Kill()
	timed(&m.linked, "cp", filepath.Join(mnt.Dir, "images", name, "image"), mnt.Restore("stored"))
	m.PeakMiB = max(m.PeakMiB, peakMiB(b, mnt.Daemon()))
	p.Kill()
	mnt.Unmount()

	fresh := harness.NewMountAt(b, filepath.Join(dir, "other"))
	defer fresh.Unmount()
	p = harness.Start(b, "shape", r.shape...)
	cat(&m.null, fresh.Image(p), null)
	m.PeakMiB = max(m.PeakMiB, peakMiB(b, fresh.Daemon()))
	p.Kill()
}

// slowed measures how much slower a target works while a checkpoint is taken and read, and after it.
func (m *throughMount) slowed(b *testing.B, r row) {
	dir := scratch(b)
	defer os.RemoveAll(dir)
	mnt := harness.NewMountAt(b, filepath.Join(dir, "store"))
	defer mnt.Unmount()
	p := harness.Start(b, "shape", append([]string{"units=1"}, r.shape...)...)
	defer p.Kill()
	w := watchWork(b, p)
	defer w.mem.Close()
	const quiet = 300 * time.Millisecond
	before := w.rate(func() { time.Sleep(quiet) })
	during := w.rate(func() { run(b, "sh", "-c", `exec cat "$0" > /dev/null`, mnt.Image(p)) })
	after := w.rate(func() { time.Sleep(quiet) })
	m.during, m.after = append(m.during, during/before), append(m.after, after/before)
}

// work is a target that counts what it does.
type work struct {
	b   *testing.B
	mem *os.File
	at  int64
}

func watchWork(b *testing.B, p *harness.Program) *work {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(p.Dir, "result.units"))
	if err != nil {
		b.Fatal(err)
	}
	w := &work{b: b}
	if w.at, err = strconv.ParseInt(strings.TrimSpace(string(text)), 0, 64); err != nil {
		b.Fatal(err)
	}
	if w.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", p.PID)); err != nil {
		b.Fatal(err)
	}
	return w
}

// rate is how many units a second the target does while f runs.
func (w *work) rate(f func()) float64 {
	from := w.units()
	s := seconds(f)
	return float64(w.units()-from) / s
}

func (w *work) units() uint64 {
	var n [8]byte
	if _, err := w.mem.ReadAt(n[:], w.at); err != nil {
		w.b.Fatal(err)
	}
	return binary.LittleEndian.Uint64(n[:])
}

var peakLine = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMiB is the most memory that a process had.
func peakMiB(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	found := peakLine.FindSubmatch(text)
	if found == nil {
		b.Fatalf("no VmHWM of process %d: %s", pid, text)
	}
	kib, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

func reportMount(b *testing.B, all []*throughMount) {
	var t strings.Builder
	t.WriteString("\n| process | cat > file ms | / copy | cat > /dev/null | GB/s | again | images/ > /dev/null | GB/s | cp file restore/ | cp images/ restore/ | peak MiB | rate during | after |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, m := range all {
		m.File, m.Null, m.Again, m.Stored = spreadOf(m.file), spreadOf(m.null), spreadOf(m.again), spreadOf(m.stored)
		m.Upload, m.Linked, m.Copy = spreadOf(m.upload), spreadOf(m.linked), spreadOf(m.copy)
		m.During, m.After = spreadOf(m.during), spreadOf(m.after)
		speed := func(s *spread) string { return fmt.Sprintf("%.2f", float64(m.Bytes)/1e6/s.Median) }
		fmt.Fprintf(&t, "| %s | %v | %s | %v | %s | %v | %v | %s | %v | %v | %.0f | %v | %v |\n", m.Row, m.File, ratio(m.File, m.Copy),
			m.Null, speed(m.Null), m.Again, m.Stored, speed(m.Stored), m.Upload, m.Linked, m.PeakMiB, m.During, m.After)
	}
	fmt.Println(t.String())
	writeJSON(b, ".mount", all)
}
