package store

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// benchImage is 64 MiB of chunks of one sort, with their hashes.
func benchImage(sort string) ([][]byte, []chunk.Hash) {
	var chunks [][]byte
	for seed := uint64(100); len(chunks) < 1024; seed++ {
		for _, c := range testImage(seed, 256) {
			random := len(c) == 64<<10 && c[8] != 0
			if len(c) == 64<<10 && !chunk.AllZero(c) && len(chunks) < 1024 && random == (sort == "random") {
				chunks = append(chunks, c)
			}
		}
	}
	hashes := make([]chunk.Hash, len(chunks))
	for i := range chunks {
		hashes[i] = chunk.Sum(chunks[i])
	}
	return chunks, hashes
}

func benchPut(b *testing.B, s *Store, name string, chunks [][]byte, hashes []chunk.Hash) {
	b.Helper()
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		b.Fatal(err)
	}
	for i := range chunks {
		if err := in.Put(hashes[i], chunks[i]); err != nil {
			b.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkIngest stores 64 MiB and commits: bytes nobody has, and the same again.
func BenchmarkIngest(b *testing.B) {
	for _, sort := range []string{"compressible", "random"} {
		chunks, hashes := benchImage(sort)
		b.Run(sort, func(b *testing.B) {
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for i := range b.N {
				b.StopTimer()
				s, err := Open(fmt.Sprintf("%s/%d", b.TempDir(), i), Options{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				benchPut(b, s, "x", chunks, hashes)
				b.StopTimer()
				s.Close()
			}
		})
		b.Run(sort+"-again", func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			s.o.CheckHashes = false
			benchPut(b, s, "first", chunks, hashes)
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				benchPut(b, s, fmt.Sprint(i), chunks, hashes)
			}
		})
	}
}

// BenchmarkIngestFast stores 64 MiB as ingests do and, in turn, as Settle would leave it:
// "x-settled" is the time of the first over that of the second.
func BenchmarkIngestFast(b *testing.B) {
	chunks, hashes := benchImage("compressible")
	b.SetBytes(64 << 20)
	var took [2]time.Duration
	for b.Loop() {
		for i := range took {
			s, err := Open(b.TempDir(), Options{atOnce: i == 1})
			if err != nil {
				b.Fatal(err)
			}
			begun := time.Now()
			benchPut(b, s, "x", chunks, hashes)
			took[i] += time.Since(begun)
			s.Close()
		}
	}
	b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "x-settled")
}

// BenchmarkSettle rewrites 64 MiB that were stored fast: "x-size" is what they take then over
// what they took.
func BenchmarkSettle(b *testing.B) {
	chunks, hashes := benchImage("compressible")
	for _, workers := range []int{1, runtime.GOMAXPROCS(0)} {
		b.Run(fmt.Sprintf("workers-%d", workers), func(b *testing.B) {
			b.SetBytes(64 << 20)
			var r GCReport
			for range b.N {
				b.StopTimer()
				s, err := Open(b.TempDir(), Options{})
				if err != nil {
					b.Fatal(err)
				}
				benchPut(b, s, "x", chunks, hashes)
				b.StartTimer()
				if r, err = s.Settle(context.Background(), workers); err != nil || r.Settled == 0 {
					b.Fatal(r, err)
				}
				b.StopTimer()
				s.Close()
			}
			b.ReportMetric(float64(r.SettledTo)/float64(r.SettledFrom), "x-size")
		})
	}
}

// BenchmarkRead reads an image from front to end in pieces of 128 KiB, as FUSE does, with
// read-ahead and, in turn, without: "x-plain" is the time with over the time without.
func BenchmarkRead(b *testing.B) {
	for _, sort := range []string{"compressible", "random"} {
		chunks, hashes := benchImage(sort)
		b.Run(sort, func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			s.o.CheckHashes = false
			benchPut(b, s, "x", chunks, hashes)
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			bound := s.o.ReadAhead
			var took, plain time.Duration
			for b.Loop() {
				took += benchRead(b, s)
				b.StopTimer()
				s.o.ReadAhead = -1
				plain += benchRead(b, s)
				s.o.ReadAhead = bound
				b.StartTimer()
			}
			b.ReportMetric(took.Seconds()/plain.Seconds(), "x-plain")
		})
	}
}

func benchRead(b *testing.B, s *Store) time.Duration {
	b.Helper()
	begun := time.Now()
	r, err := s.OpenImage("x")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 128<<10)
	for off := int64(0); ; off += int64(len(buf)) {
		if _, err := r.ReadAt(buf, off); err == io.EOF {
			return time.Since(begun)
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// TestMemoryBounded: what an ingest holds does not grow with the image.
func TestMemoryBounded(t *testing.T) {
	s, err := Open(t.TempDir(), Options{PackSize: 4 << 20, Window: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := s.Begin(context.Background(), "big")
	if err != nil {
		t.Fatal(err)
	}
	c := make([]byte, 64<<10)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var first int64
	for i := range 16384 { // 1 GiB
		c[0], c[1], c[5000] = byte(i), byte(i>>8), byte(i>>3)
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
		if i == 2048 {
			first = heap()
		}
	}
	if grown := heap() - first; grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes from 128 MiB to 1 GiB", grown)
	} else {
		t.Logf("the heap grew by %d bytes from 128 MiB to 1 GiB", grown)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
}
