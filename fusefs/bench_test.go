package fusefs_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
)

// BenchmarkSaved reads a stored image through the mount, as cat does, and compares that to a
// file of the same size which the same server has in memory, and to reading the store without
// a mount: "x-memory" near 1 means that FUSE is the limit; where it is not, "idle" tells how many
// processors had nothing to do.
func BenchmarkSaved(b *testing.B) {
	const size = 48 << 20
	for _, sort := range []string{"compressible", "random"} {
		for _, buf := range []int{128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", sort, buf>>10), func(b *testing.B) {
				m := prepare(b, 0)
				saveImage(b, m, benchBytes(sort, size))
				m.start()
				memory := openFile(b, m.mnt+"/images/x/memory") // that reads it
				var stored, fromMemory, idle time.Duration
				for b.Loop() {
					f := openFile(b, m.mnt+"/images/x/image")
					before := idleTime(b)
					stored += readAll(b, f, size, buf)
					idle += idleTime(b) - before
					f.Close()
					fromMemory += readAll(b, memory, size, buf)
				}
				memory.Close()
				m.end()
				direct := readDirectly(b, m, b.N, buf)
				b.ReportMetric(stored.Seconds()/fromMemory.Seconds(), "x-memory")
				b.ReportMetric(stored.Seconds()/direct.Seconds(), "x-direct")
				b.ReportMetric(float64(b.N)*size/1e6/stored.Seconds(), "MB/s")
				b.ReportMetric(idle.Seconds()/stored.Seconds(), "idle")
			})
		}
	}
}

func openFile(b *testing.B, path string) *os.File {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// idleTime is how long the processors together had nothing to do, see proc(5). It counts in
// hundredths of a second.
func idleTime(b *testing.B) time.Duration {
	b.Helper()
	stat, err := os.ReadFile("/proc/stat")
	var user, nice, system, idle, iowait int64
	if err == nil {
		_, err = fmt.Sscanf(string(stat), "cpu %d %d %d %d %d", &user, &nice, &system, &idle, &iowait)
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(idle+iowait) * 10 * time.Millisecond
}

// readAll reads from front to end and returns how long that took.
func readAll(b *testing.B, r io.ReaderAt, size int64, buf int) time.Duration {
	b.Helper()
	p := make([]byte, buf)
	begun := time.Now()
	for off := int64(0); off < size; off += int64(buf) {
		if _, err := r.ReadAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(begun)
}

// benchBytes makes bytes as in memory, or such as cannot be compressed.
func benchBytes(sort string, size int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, size)
	for i := 0; i < size; i += 8 {
		switch {
		case sort == "random":
			binary.LittleEndian.PutUint64(data[i:], rnd.Uint64())
		case i%64 == 24:
			binary.LittleEndian.PutUint64(data[i:], rnd.Uint64N(1000))
		}
	}
	return data
}

// saveImage stores data as an image, and beside it as an attachment, which is served from
// memory.
func saveImage(b *testing.B, m *mounted, data []byte) {
	b.Helper()
	s, err := store.Open(filepath.Join(m.dir, "store"), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	in, err := s.Begin(context.Background(), "x")
	if err != nil {
		b.Fatal(err)
	}
	for rest := data; len(rest) > 0; rest = rest[image.ChunkSize:] {
		if err := in.Put(store.Hash(image.HashOf(rest[:image.ChunkSize])), rest[:image.ChunkSize]); err != nil {
			b.Fatal(err)
		}
	}
	in.Attach("memory", data)
	if err := errors.Join(in.Commit(), s.Close()); err != nil {
		b.Fatal(err)
	}
}

// readDirectly returns how long it takes to read the image n times without a mount.
func readDirectly(b *testing.B, m *mounted, n, buf int) (took time.Duration) {
	b.Helper()
	s, err := store.Open(filepath.Join(m.dir, "store"), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for range n {
		r, err := s.OpenImage("x")
		if err != nil {
			b.Fatal(err)
		}
		took += readAll(b, r, r.Size(), buf)
		r.Close()
	}
	return took
}
