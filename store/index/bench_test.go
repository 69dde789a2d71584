package index

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// procStatus returns a line of /proc/self/status, in MiB.
func procStatus(b *testing.B, name string) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), name+":")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) / 1024
}

// forgetCached makes the kernel drop what it has of the files of an index.
func forgetCached(b *testing.B, dir string) {
	b.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// warm reads an index, so that lookups are not those of the disk.
func warm(b *testing.B, dir string) {
	b.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err == nil {
			_, err = io.Copy(io.Discard, f)
		}
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// cpuTime is what the process used of the processors, which other processes do not change.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func memNow(b *testing.B) (heap, rss float64) {
	b.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20), procStatus(b, "VmRSS")
}

// BenchmarkIndex10M opens and asks an index of ten million chunks in six runs and 4,000
// packs, then merges it. It takes 0.6 GB of disk.
func BenchmarkIndex10M(b *testing.B) {
	dir, keys := madeIndex(b, 20, 7_000_000, 2_050_000, 650_000, 210_000, 70_000, 20_000)
	b.Run("open-nothing", func(b *testing.B) { benchOpen(b, b.TempDir(), false) })
	b.Run("open-cold", func(b *testing.B) { benchOpen(b, dir, true) })
	b.Run("open", func(b *testing.B) { benchOpen(b, dir, false) })
	warm(b, dir)
	x := openIndex(b, dir)
	defer x.Close()
	hit := func(rnd *rand.Rand) bool {
		h := madeHash(keys[rnd.IntN(len(keys))])
		_, ok, err := x.Find(&h)
		return ok && err == nil
	}
	miss := func(rnd *rand.Rand) bool {
		h := madeHash(rnd.Uint64())
		known, err := x.Reuse(&h)
		return known == nil && err == nil
	}
	for name, look := range map[string]func(*rand.Rand) bool{"hit": hit, "miss": miss} {
		b.Run(name, func(b *testing.B) { benchLookup(b, x, look, false) })
		b.Run(name+"-parallel", func(b *testing.B) { benchLookup(b, x, look, true) })
	}
	b.Run("merge", func(b *testing.B) { benchMerge(b, x, hit) })
}

func benchOpen(b *testing.B, dir string, cold bool) {
	heap, rss := memNow(b)
	var took, cpu time.Duration
	for i := range b.N {
		if cold {
			forgetCached(b, dir)
		}
		start, used := time.Now(), cpuTime(b)
		x := openIndex(b, dir)
		took += time.Since(start)
		cpu += cpuTime(b) - used
		if i == 0 {
			now := procStatus(b, "VmRSS") // with all that opening left behind
			live, _ := memNow(b)
			b.ReportMetric(now-rss, "RSS-MiB")
			b.ReportMetric(live-heap, "heap-MiB")
			b.ReportMetric(float64(x.memory())/(1<<20), "tables-MiB")
		}
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "open-ms")
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms")
	b.ReportMetric(0, "ns/op")
}

func benchLookup(b *testing.B, x *Index, look func(*rand.Rand) bool, parallel bool) {
	b.ReportAllocs()
	before, used := x.reads.Load(), cpuTime(b)
	var wrong, seed atomic.Uint64
	if parallel {
		b.RunParallel(func(pb *testing.PB) {
			rnd := rand.New(rand.NewPCG(seed.Add(1), 6))
			for pb.Next() {
				if !look(rnd) {
					wrong.Add(1)
				}
			}
		})
	} else {
		rnd := rand.New(rand.NewPCG(5, 6))
		for range b.N {
			if !look(rnd) {
				wrong.Add(1)
			}
		}
	}
	if n := wrong.Load(); n > 0 {
		b.Fatalf("%d wrong answers", n)
	}
	b.ReportMetric(float64((cpuTime(b)-used).Nanoseconds())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(x.reads.Load()-before)/float64(b.N), "reads/op")
}

// benchMerge makes one run of all, once, while chunks are looked up.
func benchMerge(b *testing.B, x *Index, look func(*rand.Rand) bool) {
	_, rss := memNow(b)
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // peak := now
		b.Fatal(err)
	}
	done := make(chan struct{})
	var lookups atomic.Int64
	go func() {
		defer close(done)
		if err := x.Flush(true); err != nil {
			b.Error(err)
		}
	}()
	rnd := rand.New(rand.NewPCG(5, 6))
	for busy := true; busy; {
		if !look(rnd) {
			b.Fatal("a chunk was not found during the merge")
		}
		lookups.Add(1)
		select {
		case <-done:
			busy = false
		default:
		}
	}
	b.ReportMetric(procStatus(b, "VmHWM")-rss, "peak-RSS-MiB")
	b.ReportMetric(float64(lookups.Load()), "lookups")
}
