package bench

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// BenchmarkClones restores 1 GiB in pages of 4 KiB from a template of the mount, by cp. It reports the time in ms, compared
// with the same of 1 MiB, and how much of its memory such a restore takes.
func BenchmarkClones(b *testing.B) {
	m := harness.NewMount(b)
	restore := func(mib string, template bool) (ms []float64, used float64) {
		r := harness.Start(b, "shape", "mib="+mib)
		have := len(m.Images())
		run(b, "cat", m.Image(r))
		names := m.WaitImages(have + 1)
		dir := filepath.Join(m.Dir, "images", names[0])
		for _, n := range names { // the newest
			if st, err := os.Stat(filepath.Join(m.Dir, "images", n)); err == nil {
				if old, err := os.Stat(dir); err == nil && st.ModTime().After(old.ModTime()) {
					dir = filepath.Join(m.Dir, "images", n)
				}
			}
		}
		harness.Eventually(b, "the end of the work on the store", func() bool {
			log, err := os.ReadFile(filepath.Join(m.Store, "mount.log"))
			return err == nil && strings.Count(string(log), "compressed again") > have
		})
		if template {
			if err := os.WriteFile(filepath.Join(dir, "template"), []byte("on"), 0); err != nil {
				b.Fatal(err)
			}
		}
		const rounds = 11
		for i := range rounds {
			r.Kill()
			r.Again()
			before := available(b)
			ms = append(ms, 1000*seconds(func() { run(b, "cp", filepath.Join(dir, "image"), m.Restore(mib+"-"+strconv.Itoa(i))) }))
			r.Restored()
			used += (before - available(b)) / rounds
		}
		r.Kill()
		return ms, used
	}
	for b.Loop() {
		small, _ := restore("1", false)
		clone, used := restore("1024", true)
		b.ReportMetric(middle(clone), "clone-ms")
		b.ReportMetric(middle(clone)/middle(small), "clone/1MiB")
		b.ReportMetric(100*used/(1<<30), "%memory")
	}
}

// available is MemAvailable, in bytes.
func available(b *testing.B) float64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB$`).FindSubmatch(text)
	if found == nil {
		b.Fatal("no MemAvailable")
	}
	kib, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib * 1024
}
