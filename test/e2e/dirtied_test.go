package e2e

import (
	"bufio"
	"encoding/json"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

const pageSize = 4 << 10

// pageSums holds a hash of every page of an image, by address.
type pageSums map[uint64]uint64

// sumSeed is the same for all images of a run.
var sumSeed = maphash.MakeSeed()

// dirtied is what changed in a process between two images, in bytes: pages that are new or
// differ. It is measured on the images, since not every kernel has soft-dirty bits. Pages that
// are gone or all zeros now are not counted: nothing has to be kept of them.
type dirtied struct {
	pages      int64 // the pages themselves
	in16, in64 int64 // aligned windows of 16 and 64 KiB that hold such a page
	together   int64 // the pages in one zstd stream …
	alone      int64 // … and each compressed by itself
}

func (d *dirtied) add(more *dirtied) {
	d.pages += more.pages
	d.in16 += more.in16
	d.in64 += more.in64
	d.together += more.together
	d.alone += more.alone
}

// since compares the image in a folder of images/ with the sums of an earlier one.
func since(t *testing.T, before pageSums, dir string) (*dirtied, pageSums) {
	t.Helper()
	d, now := &dirtied{}, pageSums{}
	var all length
	stream, err := zstd.NewWriter(&all, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	alone, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	var buf []byte
	last := ^uint64(0)
	eachPage(t, dir, func(at uint64, page []byte) {
		now[at] = maphash.Bytes(sumSeed, page)
		if sum, had := before[at]; had && sum == now[at] {
			return
		}
		d.pages += pageSize
		d.in16 += enters(last, at, 16<<10)
		d.in64 += enters(last, at, 64<<10)
		last = at
		if _, err := stream.Write(page); err != nil {
			t.Fatal(err)
		}
		buf = alone.EncodeAll(page, buf[:0])
		d.alone += int64(min(len(buf), pageSize))
	})
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	d.together = int64(all)
	return d, now
}

// enters is the size of the aligned window that at lies in, or 0 if last lies in it too.
func enters(last, at, size uint64) int64 {
	if last/size == at/size {
		return 0
	}
	return int64(size)
}

// length counts what is written to it.
type length int64

func (n *length) Write(b []byte) (int, error) {
	*n += length(len(b))
	return len(b), nil
}

// eachPage calls f for every page of private memory of the first process of an image, by
// address. The pages stand behind the head, in the order of the manifest.
func eachPage(t *testing.T, dir string, f func(at uint64, page []byte)) {
	t.Helper()
	var m struct {
		Image    struct{ Head int64 }
		Manifest struct {
			MMs []struct {
				VMAs []struct {
					Extents []struct{ Start, Len uint64 }
				}
			}
		}
	}
	if err := json.Unmarshal(read(t, filepath.Join(dir, "manifest.json")), &m); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Seek(m.Image.Head, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	in, page, n := bufio.NewReaderSize(file, 1<<20), make([]byte, pageSize), 0
	for _, v := range m.Manifest.MMs[0].VMAs {
		for _, e := range v.Extents {
			for at := e.Start; at < e.Start+e.Len; at += pageSize {
				if _, err := io.ReadFull(in, page); err != nil {
					t.Fatalf("page %#x: %v", at, err)
				}
				f(at, page)
				n++
			}
		}
	}
	if n == 0 {
		t.Fatalf("%s: the manifest has no pages", dir)
	}
}
