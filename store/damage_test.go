package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// twoImages makes a store with images a and b that share nothing, each in packs of its
// own, and closes it. It returns the packs of a, the largest first.
func twoImages(t *testing.T) (dir string, packsOfA []string) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	ingest(t, s, "a", testImage(1, 100))
	packsOfA = files(t, dir, packsName)
	slices.SortFunc(packsOfA, func(a, b string) int { return cmp.Compare(s.packs[packID(b)].size, s.packs[packID(a)].size) })
	ingest(t, s, "b", testImage(2, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, packsOfA
}

func packID(path string) fileID {
	id, _ := parseID(filepath.Base(path), packExt)
	return id
}

func files(t *testing.T, dir, sub string) (list []string) {
	t.Helper()
	ents, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		list = append(list, filepath.Join(dir, sub, e.Name()))
	}
	return list
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if off < 0 {
		off += int64(len(b))
	}
	b[off] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestPackVanishes removes a pack under an open store.
func TestPackVanishes(t *testing.T) {
	dir, packs := twoImages(t)
	s := open(t, dir, Options{PackSize: 1 << 20})
	for _, p := range packs {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	_, err := readImage(s, "a")
	if !errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Verify(context.Background(), false, func(string) {}); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	ingest(t, s, "a again", testImage(1, 100)) // heals what was found missing
	wantImage(t, s, "a", testImage(1, 100))
	wantClean(t, s)
}

func TestIndexLost(t *testing.T) {
	dir, _ := twoImages(t)
	if err := os.RemoveAll(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	wantImage(t, s, "a", testImage(1, 100))
	wantImage(t, s, "b", testImage(2, 100))
	wantClean(t, s)
	if im := ingest(t, s, "c", testImage(1, 100)); im.Unique > 200 {
		t.Errorf("%d bytes were stored again", im.Unique)
	}
}

// TestIndexDamaged flips bits all over the index: it is made again at Open or on the fly.
func TestIndexDamaged(t *testing.T) {
	for _, off := range []int64{0, 9, 20, 40, runHeadLen + 3, runBlock + 7, 2*runBlock + 100, -1} {
		dir, _ := twoImages(t)
		for _, f := range files(t, dir, indexName) {
			flip(t, f, off)
		}
		s := open(t, dir, Options{})
		if off%2 == 0 {
			gc(t, s) // it may be the first to notice
		}
		wantImage(t, s, "a", testImage(1, 100))
		wantImage(t, s, "b", testImage(2, 100))
		if im := ingest(t, s, "c", testImage(1, 100)); im.Unique > 200 {
			t.Errorf("offset %d: %d bytes were stored again", off, im.Unique)
		}
		gc(t, s)
		wantClean(t, s)
	}
}

func TestRecordDamaged(t *testing.T) {
	dir, _ := twoImages(t)
	s := open(t, dir, Options{})
	path := s.recordPath(s.images["a"].id)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	flip(t, path, 30)
	s = open(t, dir, Options{})
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != "b" {
		t.Errorf("%v %v", list, err)
	}
	var re *RecordError
	if _, err := s.GC(context.Background()); !errors.As(err, &re) || re.Path != path {
		t.Errorf("gc beside a damaged record: %v", err)
	}
	n := 0
	if err := s.Verify(context.Background(), false, func(string) { n++ }); !errors.Is(err, ErrDamaged) || n != 1 {
		t.Errorf("verify: %v, %d faults", err, n)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	wantImage(t, s, "a", testImage(1, 100))
	wantClean(t, s)
}

func TestVersion(t *testing.T) {
	dir, _ := twoImages(t)
	path := filepath.Join(dir, versionName)
	if err := os.WriteFile(path, []byte("ckptfs store 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var ve *VersionError
	if _, err := Open(dir, Options{}); !errors.As(err, &ve) || ve.Found != 7 {
		t.Error(err)
	}
	for _, bad := range []string{"", "something else", "ckptfs store x", "ckptfs store 0"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrNotStore) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrNotStore) {
		t.Error(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other, Options{}); !errors.Is(err, ErrNotStore) {
		t.Error(err)
	}
}

// TestLeftovers: what a dead process left is removed, what is not ours stays.
func TestLeftovers(t *testing.T) {
	dir, _ := twoImages(t)
	for _, sub := range []string{packsName, indexName, imagesName} {
		for _, name := range []string{newID().String() + packExt + tmpExt, "note"} {
			if err := os.WriteFile(filepath.Join(dir, sub, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := open(t, dir, Options{})
	for _, sub := range []string{packsName, indexName, imagesName} {
		all := fmt.Sprint(files(t, dir, sub))
		if strings.Contains(all, tmpExt) || !strings.Contains(all, "note") {
			t.Errorf("%s: %s", sub, all)
		}
	}
	wantClean(t, s)
	gc(t, s)
	wantImage(t, s, "a", testImage(1, 100))
}
