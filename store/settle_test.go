package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
)

func settle(t testing.TB, s *Store) GCReport {
	t.Helper()
	r, err := s.Settle(context.Background(), 2)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// codecs counts the chunks in a store by how they are stored.
func codecs(t testing.TB, s *Store) (n [4]int) {
	t.Helper()
	for _, p := range s.snapshotPacks() {
		info, err := s.readFooter(p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range info.Entries {
			n[info.Entries[i].Codec]++
		}
	}
	return n
}

func packNames(t testing.TB, s *Store) (list []string) {
	t.Helper()
	ents, err := os.ReadDir(filepath.Join(s.dir, layout.Packs))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		list = append(list, e.Name())
	}
	return list
}

func TestSettle(t *testing.T) {
	for _, key := range []*Key{nil, testKey(t)} {
		o := Options{PackSize: 1 << 20, Key: key}
		s := open(t, t.TempDir(), o)
		a, b := testImage(1, 200), testImage(2, 100)
		ingest(t, s, "a", a)
		before := packBytes(t, s)
		was := codecs(t, s)
		if was[codec.Fast] == 0 {
			t.Fatalf("chunks by codec: %v", was)
		}
		r := settle(t, s)
		after := packBytes(t, s)
		if r.Settled == 0 || r.Unsettled != 0 || r.Freed != before-after || after >= before || r.SettledFrom-r.SettledTo < (before-after)/2 {
			t.Errorf("from %d to %d bytes: %+v", before, after, r)
		}
		now := codecs(t, s)
		if now[codec.Fast] != 0 || now[codec.Zstd] < was[codec.Fast] || now[codec.Raw]+now[codec.Zstd] != was[0]+was[1]+was[3] {
			t.Errorf("chunks by codec: %v, then %v", was, now)
		}
		names := packNames(t, s)
		if r := settle(t, s); r.Packs != 0 || r.Written != 0 || r.Settled != 0 || !slices.Equal(names, packNames(t, s)) {
			t.Errorf("a second time: %+v", r)
		}
		ingest(t, s, "a again", a)
		ingest(t, s, "b", b)
		for range 2 {
			wantImage(t, s, "a", a)
			wantImage(t, s, "a again", a)
			wantImage(t, s, "b", b)
			wantClean(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(s.dir, layout.Index)); err != nil { // the packs alone must do
				t.Fatal(err)
			}
			s = open(t, s.dir, o)
			settle(t, s)
		}
	}
}

// TestSettleLeavesOthers: packs from before there was settling have any ID.
func TestSettleLeavesOthers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{atOnce: true}) // one pack, which has something compressed in it
	s.w.Chunks.Kind = disk.Fast              // as their random bit may say
	chunks := testImage(1, 200)
	ingest(t, s, "a", chunks)
	names := packNames(t, s)
	for range 2 {
		if r := settle(t, s); r.Packs+r.Written+r.Settled+r.Unsettled != 0 {
			t.Errorf("%+v", r)
		}
		if !slices.Equal(names, packNames(t, s)) {
			t.Error("packs were rewritten")
		}
		s.Close()
		s = open(t, dir, Options{})
	}
	wantImage(t, s, "a", chunks)
	s.Close()
	if _, err := s.Settle(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// endingCtx ends when it was asked some times.
type endingCtx struct {
	context.Context
	left int
}

func (c *endingCtx) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestSettleStopped stops Settle again and again: what was done stays done.
func TestSettleStopped(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 512 << 10})
	chunks := testImage(1, 150)
	ingest(t, s, "a", chunks)
	todo := len(s.unsettled())
	whole := codecs(t, s)
	runs, written := 0, int64(0)
	for left := todo; left > 0; runs++ {
		r, err := s.Settle(&endingCtx{t.Context(), 50}, 1)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		written += r.SettledFrom
		left = r.Unsettled
		wantImage(t, s, "a", chunks)
		if runs > 50 {
			t.Fatalf("%d packs are never settled", left)
		}
	}
	if runs < 3 {
		t.Errorf("%d runs: nothing was stopped", runs)
	}
	if now := codecs(t, s); now[0]+now[1] != whole[0]+whole[1]+whole[3] || now[codec.Fast] != 0 {
		t.Errorf("chunks by codec: %v, %v before", now, whole)
	}
	wantClean(t, s)
}

// TestSettleDamage: a pack with a damaged chunk stays where it is, once asked.
func TestSettleDamage(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	chunks := testImage(1, 100)
	ingest(t, s, "a", chunks)
	s.mu.Lock()
	var victim *pack.Pack
	for _, p := range s.packs {
		if p.ID.IsFast() {
			victim = p
		}
	}
	s.mu.Unlock()
	flip(t, s.files.Path(victim), victim.Size/2)
	r := settle(t, s)
	if len(r.Kept) != 1 || r.Unsettled != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(s.files.Path(victim)); err != nil {
		t.Error(err)
	}
	if r := settle(t, s); len(r.Kept)+r.Packs+r.Written != 0 {
		t.Errorf("a second time: %+v", r)
	}
	ingest(t, s, "again", chunks) // heals
	gc(t, s)
	settle(t, s)
	wantImage(t, s, "a", chunks)
	wantClean(t, s)
}

// TestSettleBesideIngest settles while images come, are read and go.
func TestSettleBesideIngest(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 256 << 10, Window: 64 << 10})
	ctx, stop := context.WithCancel(context.Background())
	var back sync.WaitGroup
	settled := 0
	back.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			r, err := s.Settle(context.Background(), 1+n%2)
			if err == nil && n%4 == 0 {
				_, err = s.GC(context.Background())
			}
			if err != nil {
				t.Error(err)
				return
			}
			settled += r.Settled
		}
	})
	old := testImage(9, 60)
	ingest(t, s, "old", old)
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			for i := range 12 {
				if err := putAndRead(s, fmt.Sprintf("%d-%d", g, i), testImage(rnd.Uint64N(4), 20+rnd.IntN(20)), rnd.IntN(5) == 0); err != nil {
					t.Error(err)
					return
				}
				if got, err := readImage(s, "old"); err != nil || !bytes.Equal(got, bytes.Join(old, nil)) {
					t.Errorf("the old image: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	back.Wait()
	if settled == 0 {
		t.Error("nothing was settled")
	}
	wantClean(t, s)
	if err := s.Remove("old"); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	if n := packBytes(t, s); n != 0 {
		t.Errorf("%d bytes left in an empty store", n)
	}
}

// putAndRead stores an image, or gives it up, compares it and removes it.
func putAndRead(s *Store, name string, chunks [][]byte, abort bool) error {
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		return err
	}
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			return err
		}
	}
	if abort {
		return in.Abort()
	}
	if err := in.Commit(); err != nil {
		return err
	}
	got, err := readImage(s, name)
	if err == nil && !bytes.Equal(got, bytes.Join(chunks, nil)) {
		err = errors.New("it differs")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return s.Remove(name)
}
