// Package bench measures ckptfs on running programs. Every benchmark reports ratios of two
// measurements of the same run, since absolute times of one machine say little about another:
//
//	go test -run '^$' -bench . -benchtime 3x ./test/bench
package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// sizes are the memory sizes in MiB that are compared.
var sizes = []int{16, 256, 1024}

// BenchmarkPause has the target measure how long a checkpoint stops it, in nanoseconds, and
// compares that to the pause of the smallest target: "xsmallest" says how it grows.
func BenchmarkPause(b *testing.B) {
	for _, pages := range []string{"huge", "small"} {
		smallest := 0.0
		for _, mib := range sizes {
			b.Run(pages+"/"+strconv.Itoa(mib)+"MiB", func(b *testing.B) {
				pause := median(b, func() float64 {
					r := harness.Start(b, "pause", strconv.Itoa(mib), pages)
					r.DumpTo("/dev/null")
					ns, err := strconv.ParseFloat(r.Pass(false), 64)
					if err != nil {
						b.Fatal(err)
					}
					r.Kill()
					return ns
				})
				if smallest == 0 {
					smallest = pause
				}
				b.ReportMetric(pause, "pause-ns")
				b.ReportMetric(pause/smallest, "xsmallest")
			})
		}
	}
}

// BenchmarkThroughput compares a dump and a restore of 512 MiB to cp of the image.
func BenchmarkThroughput(b *testing.B) {
	const mib = 512
	for _, pages := range []string{"huge", "small"} {
		b.Run(pages, func(b *testing.B) {
			r := harness.Start(b, "pause", strconv.Itoa(mib), pages)
			image := filepath.Join(harness.TempDir(b), "image")
			var dump, cp, restore float64
			for b.Loop() {
				dump += seconds(func() { r.DumpTo(image) })
				cp += seconds(func() { run(b, "cp", image, image+".copy"); run(b, "sync", image+".copy") })
				r.Kill()
				restore += seconds(func() { r.Restore(image) })
			}
			b.ReportMetric(dump/cp, "dump/cp")
			b.ReportMetric(restore/cp, "restore/cp")
			b.ReportMetric(float64(b.N)*mib/dump, "dump-MiB/s")
			b.ReportMetric(float64(b.N)*mib/restore, "restore-MiB/s")
			r.Kill()
		})
	}
}

// BenchmarkStore takes checkpoints of a program that rewrites a part of its memory between
// them, and reports what the second takes in the store, compared to the first.
func BenchmarkStore(b *testing.B) {
	for b.Loop() {
		m := harness.NewMount(b)
		r := harness.Start(b, "ram", "64")
		var used [2]float64
		for i := range used {
			run(b, "cp", m.Image(r), "/dev/null")
			m.WaitImages(i + 1)
			used[i] = float64(diskUsage(b, m.Store))
		}
		b.ReportMetric((used[1]-used[0])/used[0], "second/first")
		b.ReportMetric(used[0]/(64<<20), "stored/memory")
		r.Kill()
		m.Unmount()
	}
}

// median runs f once for every round of the benchmark.
func median(b *testing.B, f func() float64) float64 {
	var all []float64
	for b.Loop() {
		all = append(all, f())
	}
	return middle(all)
}

func seconds(f func()) float64 {
	from := time.Now()
	f()
	return time.Since(from).Seconds()
}

func run(b *testing.B, argv ...string) {
	b.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		b.Fatal(err)
	}
	harness.Must(b, argv...)
}
