package store

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// blockOf makes a block of some chunks, not stored yet.
func blockOf(in *Ingest, chunks [][]byte) *Block {
	whole := bytes.Join(chunks, nil)
	b := in.Block(len(whole))
	copy(b.Bytes(), whole)
	for _, c := range chunks {
		b.Add(chunk.Sum(c), len(c))
	}
	return b
}

func begin(t *testing.T, s *Store, name string) *Ingest {
	t.Helper()
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestBlocks stores blocks by several goroutines in any order, the same chunks in many of them,
// and appends them in the image's.
func TestBlocks(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20, Window: 256 << 10, CheckHashes: true})
	chunks := testImage(11, 600)
	chunks = append(chunks, chunks[:300]...)
	in := begin(t, s, "x")
	var blocks []*Block
	for at := 0; at < len(chunks); at += 5 {
		group := chunks[at:min(len(chunks), at+5)]
		if at%2 == 0 {
			blocks = append(blocks, blockOf(in, group))
			continue
		}
		whole := bytes.Join(group, nil)
		b := in.Wrap(whole)
		for _, c := range group {
			b.Add(chunk.Sum(c), len(c))
		}
		blocks = append(blocks, b)
	}
	stored := make([]chan error, len(blocks))
	var all sync.WaitGroup
	for i := range blocks {
		stored[i] = make(chan error, 1)
		all.Go(func() { stored[i] <- in.Store(blocks[i]) })
	}
	for i, b := range blocks {
		if err := <-stored[i]; err != nil {
			t.Fatal(err)
		}
		if err := in.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, "x", chunks)
	wantClean(t, s)
}

// TestBlockBetween: what a block refers to that was stored and not appended yet stays, though no
// image has it any more when GC runs.
func TestBlockBetween(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	chunks := testImage(12, 200)
	ingest(t, s, "old", chunks)
	in := begin(t, s, "new")
	b := blockOf(in, chunks)
	if err := in.Store(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("old"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.GC(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Append(b); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, "new", chunks)
	wantClean(t, s)
}

// TestBlockWrong: what a block must be like.
func TestBlockWrong(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	c := testImage(13, 1)[0]
	for name, wrong := range map[string]func(in *Ingest) error{
		"not stored": func(in *Ingest) error { return in.Append(blockOf(in, [][]byte{c})) },
		"too short": func(in *Ingest) error {
			b := in.Block(len(c) + 1)
			b.Add(chunk.Sum(c), len(c))
			return in.Store(b)
		},
		"too long": func(in *Ingest) error {
			b := in.Block(len(c) - 1)
			b.Add(chunk.Sum(c), len(c))
			return in.Store(b)
		},
		"stored twice": func(in *Ingest) error {
			b := blockOf(in, [][]byte{c})
			if err := in.Store(b); err != nil {
				t.Fatal(err)
			}
			return in.Store(b)
		},
		"an empty chunk": func(in *Ingest) error {
			b := blockOf(in, [][]byte{c})
			b.Add(chunk.Sum(nil), 0)
			return in.Store(b)
		},
		"too large a chunk": func(in *Ingest) error {
			b := in.Block(chunk.MaxLen + 1)
			b.Add(chunk.Hash{1}, chunk.MaxLen+1)
			return in.Store(b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := begin(t, s, name)
			err := wrong(in)
			if err == nil {
				t.Fatal("it was taken")
			}
			if again := in.Store(blockOf(in, [][]byte{c})); !errors.Is(again, err) && again.Error() != err.Error() {
				t.Errorf("afterwards: %v", again)
			}
			if err := in.Abort(); err != nil {
				t.Error(err)
			}
		})
	}
	wantClean(t, s)
}

// TestWaitsForOther: an ingest commits though a chunk of it waits, in a batch of another ingest
// that does not go on, for more to be written with.
func TestWaitsForOther(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	chunks := testImage(14, 8)
	slow, fast := begin(t, s, "slow"), begin(t, s, "fast")
	if err := slow.Store(blockOf(slow, chunks)); err != nil {
		t.Fatal(err)
	}
	b := blockOf(fast, chunks)
	if err := errors.Join(fast.Store(b), fast.Append(b), fast.Commit()); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, "fast", chunks)
	if err := slow.Abort(); err != nil {
		t.Fatal(err)
	}
	wantImage(t, s, "fast", chunks)
	wantClean(t, s)
}
