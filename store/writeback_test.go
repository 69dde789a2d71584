package store

import (
	"errors"
	"syscall"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// TestWriteBackFails: the disk says while an ingest runs that it has lost what was written. The
// fsync of the commit would not hear of it again.
func TestWriteBackFails(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	before, chunks := testImage(1, 40), testImage(2, 40)
	ingest(t, s, "before", before)
	in := begin(t, s, "x")
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	in.written()
	s.w.Chunks.Fail(syscall.EIO)
	if err := in.Commit(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Commit: %v", err)
	}
	wantImage(t, s, "before", before)
	wantClean(t, s)
	ingest(t, s, "x", chunks)
	wantImage(t, s, "x", chunks)
	wantClean(t, s)
}

// TestWriteBack writes packs past the steps at which the disk is asked to take them.
func TestWriteBack(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 3*pack.WriteBackStep + 1})
	chunks := randomChunks(3, 8*pack.WriteBackStep)
	in := begin(t, s, "x")
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, "x", chunks)
	wantClean(t, s)
}
