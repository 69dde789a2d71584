package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
)

// TestLookupsDuringMerge looks chunks up while the runs they are in are replaced, without a
// lock: what stood in the index before is found at any moment.
func TestLookupsDuringMerge(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	var hashes []chunk.Hash
	add := func(seed uint64) {
		chunks := testImage(seed, 6)
		ingest(t, s, fmt.Sprint(seed), chunks)
		for _, c := range chunks {
			if !chunk.AllZero(c) {
				hashes = append(hashes, chunk.Sum(c))
			}
		}
	}
	for seed := range uint64(10) {
		add(seed)
	}
	seen := slices.Clone(hashes)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				h := &seen[i%len(seen)]
				p, err := s.ix.Reuse(h)
				if _, found, ferr := s.ix.Find(h); err != nil || ferr != nil || p == nil || !found {
					t.Errorf("chunk %s: %v %v, %v %v", h, p, err, found, ferr)
					return
				}
			}
		}()
	}
	for i := range uint64(10) {
		add(100 + i)
		s.maint.Lock()
		if err := s.flushIndex(i%2 == 0); err != nil {
			t.Error(err)
		}
		s.maint.Unlock()
	}
	close(stop)
	wg.Wait()
	wantClean(t, s)
}

// TestIndexFromPacks makes the index again from the packs alone: it is the same, entry by
// entry.
func TestIndexFromPacks(t *testing.T) {
	dir, _ := twoImages(t)
	list := func() string {
		s := open(t, dir, Options{})
		s.maint.Lock()
		err := s.flushIndex(true)
		s.maint.Unlock()
		if err != nil || s.ix.Due(1) || len(files(t, dir, layout.Index)) != 1 {
			t.Fatal(err)
		}
		var lines []string
		for _, p := range s.snapshotPacks() {
			for _, e := range s.ix.EntriesOf(p) {
				lines = append(lines, fmt.Sprintf("%s %s %d %d\n", e.Hash, p.ID, e.Off, e.Stored))
			}
		}
		slices.Sort(lines)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return strings.Join(lines, "")
	}
	want := list()
	for _, broken := range []func(string) error{os.Remove, func(path string) error { return os.Truncate(path, 5000) },
		func(path string) error { return os.WriteFile(path, nil, 0o600) }} {
		var errs []error
		paths, err := filepath.Glob(filepath.Join(dir, layout.Index, "*"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%d runs: %v", len(paths), err)
		}
		for _, path := range paths {
			errs = append(errs, broken(path))
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(want) == 0 || got != want {
			t.Error("the index made from the packs differs")
		}
	}
}

// TestRunOfEarlierFormat: a store whose index an earlier ckptfs wrote opens, and gets a new one.
func TestRunOfEarlierFormat(t *testing.T) {
	dir, _ := twoImages(t)
	for _, path := range files(t, dir, layout.Index) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, earlierRun(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said []string
	s := open(t, dir, Options{Log: func(m string) { said = append(said, m) }})
	if all := strings.Join(said, "\n"); !strings.Contains(all, "an earlier ckptfs wrote it") {
		t.Errorf("the log says:\n%s", all)
	}
	wantImage(t, s, "a", testImage(1, 100))
	wantImage(t, s, "b", testImage(2, 100))
	wantClean(t, s)
	if im := ingest(t, s, "c", testImage(1, 100)); im.Unique > 200 {
		t.Errorf("%d bytes were stored again", im.Unique)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	list := files(t, dir, layout.Index)
	if len(list) == 0 {
		t.Error("no index was written")
	}
	for _, path := range list {
		if b, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(b, []byte("ckptrun2")) {
			t.Errorf("%s: %.8q, %v", filepath.Base(path), b, err)
		}
	}
}

// earlierRun makes out of a run what version 1 wrote: keys behind the blocks, nothing more.
func earlierRun(b []byte) []byte {
	packs, n := int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint64(b[16:]))
	blocks := (n + 84) / 85
	old := bytes.Clone(b[:int64(len(b))-blocks*192])
	copy(old, "ckptrun1")
	clear(old[24:32])
	head := append(bytes.Clone(old[:32]), old[64:64+packs*32]...)
	sum := chunk.Sum(append(head, old[int64(len(old))-8*blocks:]...))
	copy(old[32:], sum[:])
	return old
}
