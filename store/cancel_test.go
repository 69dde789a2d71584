package store

import (
	"context"
	"errors"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// TestCommitCancelled: a Commit that comes too late for its context ends the ingest as any other that fails.
func TestCommitCancelled(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	ctx, cancel := context.WithCancelCause(t.Context())
	in, err := s.Begin(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range testImage(1, 20) {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	gone := errors.New("the reader is gone")
	cancel(gone)
	if err := in.Commit(); !errors.Is(err, gone) {
		t.Errorf("Commit: %v", err)
	}
	if n := len(s.live()); n > 0 {
		t.Errorf("%d ingests still run", n)
	}
	if in, err = s.Begin(t.Context(), "a"); err != nil {
		t.Fatalf("its name is not free: %v", err)
	}
	if err := in.Abort(); err != nil {
		t.Error(err)
	}
}
