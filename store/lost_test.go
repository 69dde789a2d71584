package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
)

// threeImages are in a store of which something is lost: a and c share chunks, b stands
// alone. Each has packs of its own.
type threeImages struct {
	dir    string
	chunks map[string][][]byte
	at     map[string]spot // what is lost, by name
}

// spot is where something is stored.
type spot struct {
	path        string
	off, stored int64
}

// newThree makes the store and closes it.
func newThree(t *testing.T) *threeImages {
	t.Helper()
	a := testImage(1, 100)
	v := &threeImages{dir: t.TempDir(), at: map[string]spot{}, chunks: map[string][][]byte{
		"a": a, "b": testImage(2, 100), "c": append(testImage(3, 30), a[:50]...)}}
	s := open(t, v.dir, Options{PackSize: 1 << 20})
	for _, name := range []string{"a", "b", "c"} {
		ingest(t, s, name, v.chunks[name])
	}
	where := map[chunk.Hash]spot{}
	for _, p := range s.snapshotPacks() {
		info, err := s.readFooter(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range info.Entries {
			where[e.Hash] = spot{s.files.Path(p), int64(e.Off), int64(e.Stored)}
		}
	}
	rec := s.images["a"].rec
	list, err := s.loadSpans(rec.Data)
	if err != nil || rec.Data.Level == 0 {
		t.Fatalf("level %d: %v", rec.Data.Level, err)
	}
	side, err := s.leaf(rec.Attach[0].Data.Span())
	if err != nil {
		t.Fatal(err)
	}
	v.at = map[string]spot{"shared": where[chunk.Sum(a[40])], "own": where[chunk.Sum(a[99])], "leaf": where[list.Spans[len(list.Spans)-1].Hash],
		"root": where[rec.Data.Hash], "attachment": where[side[0].Hash]}
	for name, at := range v.at {
		if at.path == "" || (name == "shared" || name == "own") && at.stored < 2000 {
			t.Fatalf("%s is at %v", name, at)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return v
}

// losses are ways to lose something.
var losses = []struct {
	name string
	at   string // what is lost
	do   func(at spot, b []byte) []byte
	lost []string // images that cannot be read; more may not
	fast bool     // seen without reading the data
}{
	{"a flipped bit", "own", flipIn, []string{"a"}, false},
	{"a flipped bit in a shared chunk", "shared", flipIn, []string{"a", "c"}, false},
	{"a flipped bit in a leaf of the list", "leaf", flipIn, []string{"a"}, true},
	{"a flipped bit in the root of the list", "root", flipIn, []string{"a"}, true},
	{"a flipped bit in an attachment", "attachment", flipIn, []string{"a"}, false},
	{"a sector of zeros", "shared", func(at spot, b []byte) []byte { clear(b[at.off+512 : at.off+1024]); return b }, []string{"a", "c"}, false},
	{"bytes of something else", "own", func(at spot, b []byte) []byte { copy(b[at.off:], b[pack.HeadLen:pack.HeadLen+1000]); return b }, []string{"a"}, false},
	{"a flipped bit in the header", "own", func(_ spot, b []byte) []byte { b[33] ^= 1; return b }, nil, true},
	{"a flipped bit in the footer", "own", func(_ spot, b []byte) []byte { b[len(b)-pack.TailLen-10] ^= 1; return b }, nil, true},
	{"a flipped bit in the tail", "own", func(_ spot, b []byte) []byte { b[len(b)-40] ^= 1; return b }, nil, true},
	{"a pack cut in its tail", "own", func(_ spot, b []byte) []byte { return b[:len(b)-1] }, nil, true},
	{"a pack cut within a chunk", "own", func(at spot, b []byte) []byte { return b[:at.off+at.stored/2] }, []string{"a"}, true},
	{"a pack cut before a shared chunk", "shared", func(at spot, b []byte) []byte { return b[:at.off] }, []string{"a", "c"}, true},
	{"a pack cut to its header", "shared", func(_ spot, b []byte) []byte { return b[:pack.HeadLen] }, []string{"a", "c"}, true},
	{"a pack cut to nothing", "shared", func(spot, []byte) []byte { return nil }, []string{"a", "c"}, true},
	{"a pack that is longer", "own", func(_ spot, b []byte) []byte { return append(b, 0) }, nil, true},
	{"a missing pack", "shared", nil, []string{"a", "c"}, true},
	{"a missing pack of nodes", "root", nil, []string{"a"}, true},
}

func flipIn(at spot, b []byte) []byte {
	b[at.off+at.stored/2] ^= 0x10
	return b
}

// TestLost loses a part of a store. Errors and both kinds of Verify name what is lost and
// whose it is, everything else is read, and storing the same again heals it.
func TestLost(t *testing.T) {
	for _, l := range losses {
		t.Run(l.name, func(t *testing.T) {
			v := newThree(t)
			v.lose(t, v.at[l.at].path, func(b []byte) []byte {
				if l.do == nil {
					return nil
				}
				return l.do(v.at[l.at], b)
			}, l.do == nil)
			s := open(t, v.dir, Options{PackSize: 1 << 20})
			if l.fast {
				v.wantFaults(t, s, false, filepath.Base(v.at[l.at].path), l.lost)
			}
			v.wantRead(t, s, filepath.Base(v.at[l.at].path), l.lost)
			v.wantFaults(t, s, true, filepath.Base(v.at[l.at].path), l.lost)
			v.heal(t, s)
		})
	}
}

// lose changes a file, or removes it.
func (v *threeImages) lose(t *testing.T, path string, change func([]byte) []byte, remove bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	switch {
	case err == nil && remove:
		err = os.Remove(path)
	case err == nil:
		err = os.WriteFile(path, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantRead reads every image. The lost ones say which chunk of which pack is missing.
func (v *threeImages) wantRead(t *testing.T, s *Store, pack string, lost []string) {
	t.Helper()
	for name, chunks := range v.chunks {
		if !slices.Contains(lost, name) {
			wantImage(t, s, name, chunks)
			continue
		}
		_, err := readImage(s, name)
		if err == nil {
			err = readAttachment(s, name)
		}
		var ce *ChunkError
		if !errors.Is(err, ErrDamaged) || !errors.As(err, &ce) || !strings.HasPrefix(ce.Image, name) || ce.Pack != pack || ce.Hash == (chunk.Hash{}) {
			t.Errorf("image %s, of which a part in pack %s is lost: %v", name, pack, err)
		}
	}
}

func readAttachment(s *Store, name string) error {
	r, err := s.OpenImage(name)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = r.Attachment("info")
	return err
}

// wantFaults verifies: the faults name the pack and the lost images and no others.
func (v *threeImages) wantFaults(t *testing.T, s *Store, readData bool, pack string, lost []string) {
	t.Helper()
	var faults []string
	err := s.Verify(context.Background(), readData, func(f string) { faults = append(faults, f) })
	all := strings.Join(faults, "\n")
	if !errors.Is(err, ErrDamaged) || !strings.Contains(all, pack) || len(lost) > 0 && !strings.Contains(all, "chunk ") {
		t.Errorf("verify (read data: %v), pack %s: %v\n%s", readData, pack, err, all)
	}
	for name := range v.chunks {
		if strings.Contains(all, `"`+name+`"`) != slices.Contains(lost, name) {
			t.Errorf("verify (read data: %v) should name %q:\n%s", readData, lost, all)
		}
	}
}

// heal stores a and c again under other names; then all is well, now and after the next Open.
func (v *threeImages) heal(t *testing.T, s *Store) {
	t.Helper()
	for _, name := range []string{"a", "c"} {
		ingest(t, s, name+" again", v.chunks[name])
		v.chunks[name+" again"] = v.chunks[name]
	}
	v.wantRead(t, s, "", nil)
	gc(t, s)
	v.wantRead(t, s, "", nil)
	wantClean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, v.dir, Options{PackSize: 1 << 20})
	v.wantRead(t, s, "", nil)
	for name := range v.chunks {
		if err := readAttachment(s, name); err != nil {
			t.Error(err)
		}
	}
	wantClean(t, s)
}

// TestLostLater: who found the damage, and who stores the same again, are two processes.
func TestLostLater(t *testing.T) {
	v := newThree(t)
	at := v.at["shared"]
	v.lose(t, at.path, func(b []byte) []byte { return flipIn(at, b) }, false)
	s := open(t, v.dir, Options{PackSize: 1 << 20})
	v.wantFaults(t, s, true, filepath.Base(at.path), []string{"a", "c"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	v.heal(t, open(t, v.dir, Options{PackSize: 1 << 20}))
}

// TestLostWithIndex: without the index nobody knows what was in a pack that is cut.
func TestLostWithIndex(t *testing.T) {
	v := newThree(t)
	at := v.at["own"]
	v.lose(t, at.path, func(b []byte) []byte { return b[:len(b)-1] }, false)
	if err := os.RemoveAll(filepath.Join(v.dir, layout.Index)); err != nil {
		t.Fatal(err)
	}
	s := open(t, v.dir, Options{PackSize: 1 << 20})
	wantImage(t, s, "b", v.chunks["b"])
	_, err := readImage(s, "a")
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Base(at.path)) {
		t.Errorf("it does not name pack %s: %v", filepath.Base(at.path), err)
	}
	v.heal(t, s)
}

// TestPutBack: what was found damaged is read again as soon as it is whole. Until then GC
// keeps the pack that holds the only copy, though little else there is needed.
func TestPutBack(t *testing.T) {
	v := newThree(t)
	at := v.at["shared"]
	whole, err := os.ReadFile(at.path)
	if err != nil {
		t.Fatal(err)
	}
	v.lose(t, at.path, func(b []byte) []byte { return flipIn(at, b) }, false)
	s := open(t, v.dir, Options{PackSize: 1 << 20})
	v.wantFaults(t, s, true, filepath.Base(at.path), []string{"a", "c"})
	if err := s.Remove("a"); err != nil {
		t.Fatal(err)
	}
	delete(v.chunks, "a")
	for range 2 { // once more after opening the store again
		if r := gc(t, s); len(r.Kept) != 1 || !strings.Contains(r.Kept[0], filepath.Base(at.path)) {
			t.Errorf("gc kept %q", r.Kept)
		}
		v.wantRead(t, s, filepath.Base(at.path), []string{"c"})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, v.dir, Options{PackSize: 1 << 20})
	}
	if err := os.WriteFile(at.path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	v.wantRead(t, s, "", nil)
	wantClean(t, s)
	if r := gc(t, s); len(r.Kept) > 0 || r.Packs == 0 {
		t.Errorf("gc of the whole store: %+v", r)
	}
	v.wantRead(t, s, "", nil)
	if _, err := os.Stat(filepath.Join(v.dir, layout.Index, "damaged")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the list of damaged copies stays: %v", err)
	}
}

// TestStrayPack: a pack of which nobody knows what is in it stays for as long as an image
// lacks something.
func TestStrayPack(t *testing.T) {
	v := newThree(t)
	at := v.at["own"]
	v.lose(t, at.path, func(b []byte) []byte { return b[:len(b)-1] }, false)
	if err := os.RemoveAll(filepath.Join(v.dir, layout.Index)); err != nil {
		t.Fatal(err)
	}
	s := open(t, v.dir, Options{PackSize: 1 << 20})
	if r := gc(t, s); len(r.Kept) != 1 || !strings.Contains(r.Kept[0], filepath.Base(at.path)) {
		t.Errorf("gc kept %q", r.Kept)
	}
	ingest(t, s, "a again", v.chunks["a"])
	if r := gc(t, s); len(r.Kept) > 0 {
		t.Errorf("gc kept %q", r.Kept)
	}
	if _, err := os.Stat(at.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pack that nobody needs stays: %v", err)
	}
	v.wantRead(t, s, "", nil)
}

// TestBadListIgnored: a list that is damaged itself is no hindrance.
func TestBadListIgnored(t *testing.T) {
	v := newThree(t)
	if err := os.WriteFile(filepath.Join(v.dir, layout.Index, "damaged"), []byte("ckptbad1 and no list"), 0o600); err != nil {
		t.Fatal(err)
	}
	v.wantRead(t, open(t, v.dir, Options{}), "", nil)
}
