package store

import (
	"bytes"
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

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/record"
)

// twoImages makes a store with images a and b that share nothing, each in packs of its
// own, and closes it. It returns the packs of a, the largest first.
func twoImages(t *testing.T) (dir string, packsOfA []string) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	ingest(t, s, "a", testImage(1, 100))
	packsOfA = files(t, dir, layout.Packs)
	slices.SortFunc(packsOfA, func(a, b string) int { return cmp.Compare(s.packs[packID(b)].Size, s.packs[packID(a)].Size) })
	ingest(t, s, "b", testImage(2, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, packsOfA
}

func packID(path string) disk.ID {
	id, _ := disk.ParseID(filepath.Base(path), disk.PackExt)
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
	if err := os.RemoveAll(filepath.Join(dir, layout.Index)); err != nil {
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
	for _, off := range []int64{0, 9, 20, 40, 64 + 3, 4096 + 7, 2*4096 + 100, -1, -150, -190} {
		dir, _ := twoImages(t)
		for _, f := range files(t, dir, layout.Index) {
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

// TestIndexCut changes the length of runs, or loses one of several.
func TestIndexCut(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"empty":    func([]byte) []byte { return nil },
		"header":   func(b []byte) []byte { return b[:64] },
		"half":     func(b []byte) []byte { return b[:len(b)/2] },
		"one less": func(b []byte) []byte { return b[:len(b)-1] },
		"one more": func(b []byte) []byte { return append(b, 0) },
		"zeros":    func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := twoImages(t)
			s := open(t, dir, Options{})
			ingest(t, s, "c", testImage(3, 10)) // another run
			s.Close()
			for i := 0; i < len(files(t, dir, layout.Index)); i++ { // they change: what is damaged is made again
				f := files(t, dir, layout.Index)[i]
				b, err := os.ReadFile(f)
				if err == nil {
					err = os.WriteFile(f, change(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				wantWhole(t, dir)
			}
			if err := os.Remove(files(t, dir, layout.Index)[0]); err != nil {
				t.Fatal(err)
			}
			wantWhole(t, dir)
		})
	}
}

// wantWhole opens a store of which only the index was damaged.
func wantWhole(t *testing.T, dir string) {
	t.Helper()
	s := open(t, dir, Options{})
	wantClean(t, s)
	for i, name := range []string{"a", "b"} {
		wantImage(t, s, name, testImage(uint64(i+1), 100))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestIndexDamagedOpen damages the index of an open store: Verify names the file, and who
// needs it makes it again.
func TestIndexDamagedOpen(t *testing.T) {
	dir, _ := twoImages(t)
	s := open(t, dir, Options{})
	path := files(t, dir, layout.Index)[0]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 4096; at < len(b)-4; at += 1000 { // in place, and in every block
		b[at] ^= 1
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	var faults []string
	err = s.Verify(context.Background(), false, func(f string) { faults = append(faults, f) })
	if !errors.Is(err, ErrDamaged) || !strings.Contains(strings.Join(faults, "\n"), path) {
		t.Errorf("verify: %v\n%s", err, strings.Join(faults, "\n"))
	}
	wantImage(t, s, "a", testImage(1, 100))
	wantImage(t, s, "b", testImage(2, 100))
	wantClean(t, s)
}

// TestRecordDamaged: the other images are read, GC removes nothing, and the record may be
// put back or given up.
func TestRecordDamaged(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[30] ^= 0x10; return b },
		"empty":   func([]byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"longer":  func(b []byte) []byte { return append(b, 0) },
		"zeros":   func(b []byte) []byte { return make([]byte, len(b)) },
		"huge":    func([]byte) []byte { return make([]byte, record.MaxLen+1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := twoImages(t)
			s := open(t, dir, Options{})
			path := s.recordPath(s.images["a"].id)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			if err := os.WriteFile(path, change(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, Options{})
			wantRecordLost(t, s, path)
			im := ingest(t, s, "a", testImage(1, 100)) // its name is free, its chunks are there
			if im.Unique > 4096 {
				t.Errorf("%d bytes were stored again", im.Unique)
			}
			if err := s.Remove("a"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			gc(t, s)
			wantImage(t, s, "a", testImage(1, 100))
			wantClean(t, s)
		})
	}
}

// wantRecordLost expects image b alone, and everyone to name the record of the other.
func wantRecordLost(t *testing.T, s *Store, path string) {
	t.Helper()
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != "b" {
		t.Errorf("%v %v", list, err)
	}
	wantImage(t, s, "b", testImage(2, 100))
	var re *RecordError
	if _, err := s.GC(context.Background()); !errors.As(err, &re) || re.Path != path {
		t.Errorf("gc beside a damaged record: %v", err)
	}
	for _, readData := range []bool{false, true} {
		var faults []string
		err := s.Verify(context.Background(), readData, func(f string) { faults = append(faults, f) })
		if !errors.Is(err, ErrDamaged) || len(faults) != 1 || !strings.Contains(faults[0], path) {
			t.Errorf("verify: %v, %q", err, faults)
		}
	}
}

// TestVerifyProgress: reading everything tells how far it is, and ends where it should.
func TestVerifyProgress(t *testing.T) {
	dir, _ := twoImages(t)
	s := open(t, dir, Options{})
	var last, total int64
	calls := 0
	ctx := WithProgress(context.Background(), func(done, all int64) {
		if done < last || total != 0 && all != total || done > all {
			t.Errorf("%d of %d after %d of %d", done, all, last, total)
		}
		last, total = done, all
		calls++
	})
	if err := s.Verify(ctx, true, func(f string) { t.Error(f) }); err != nil {
		t.Fatal(err)
	}
	if calls < 2 || last < total/2 {
		t.Errorf("%d calls, the last with %d of %d", calls, last, total)
	}
	Progress(ctx, total, total) // what goes on elsewhere
	if last != total {
		t.Error("progress elsewhere was not told")
	}
	Progress(context.Background(), 1, 1) // nobody wants to know
}

func TestVersion(t *testing.T) {
	dir, _ := twoImages(t)
	path := filepath.Join(dir, layout.VersionName)
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
	for _, sub := range []string{layout.Packs, layout.Index, layout.Images} {
		for _, name := range []string{disk.NewID().String() + disk.PackExt + disk.TmpExt, "note"} {
			if err := os.WriteFile(filepath.Join(dir, sub, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := open(t, dir, Options{})
	for _, sub := range []string{layout.Packs, layout.Index, layout.Images} {
		all := fmt.Sprint(files(t, dir, sub))
		if strings.Contains(all, disk.TmpExt) || !strings.Contains(all, "note") {
			t.Errorf("%s: %s", sub, all)
		}
	}
	wantClean(t, s)
	gc(t, s)
	wantImage(t, s, "a", testImage(1, 100))
}
