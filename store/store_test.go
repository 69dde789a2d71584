package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
)

// testImage makes an image out of a seed: chunks that compress, chunks that do not,
// zeros, odd lengths, repeats. Equal seeds give equal images.
func testImage(seed uint64, chunks int) [][]byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var list [][]byte
	for i := range chunks {
		b := make([]byte, 64<<10)
		switch rnd.IntN(8) {
		case 0: // zeros
		case 1:
			fillRandom(rnd, b)
		case 2:
			b = b[:4096*(1+rnd.IntN(15))]
			fillRandom(rnd, b[:len(b)/2])
		case 3:
			if i > 0 {
				b = list[rnd.IntN(i)]
			}
		default:
			for j := 0; j+64 <= len(b); j += 64 { // like memory: small numbers among zeros
				binary.LittleEndian.PutUint64(b[j:], seed<<32|uint64(i))
				binary.LittleEndian.PutUint64(b[j+24:], rnd.Uint64N(1000))
			}
		}
		list = append(list, b)
	}
	return list
}

func fillRandom(rnd *rand.Rand, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, rnd.Uint64())
	}
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	o.CheckHashes = true
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func ingest(t testing.TB, s *Store, name string, chunks [][]byte) Image {
	t.Helper()
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	in.Attach("info", []byte("about "+strings.Fields(name)[0]))
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	im, err := s.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func readImage(s *Store, name string) ([]byte, error) {
	r, err := s.OpenImage(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
}

func wantImage(t testing.TB, s *Store, name string, chunks [][]byte) {
	t.Helper()
	got, err := readImage(s, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if !bytes.Equal(got, bytes.Join(chunks, nil)) {
		t.Fatalf("%s differs from what was put", name)
	}
}

func wantClean(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Verify(context.Background(), true, func(f string) { t.Error(f) }); err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	a, b := testImage(1, 300), testImage(2, 150)
	before := time.Now()
	im := ingest(t, s, "a", a)
	ingest(t, s, "b", b)
	ingest(t, s, "empty", nil)
	if want := int64(len(bytes.Join(a, nil))); im.Size != want || im.Chunks != 300 || im.Unique <= 0 || im.Unique >= want {
		t.Errorf("image %+v, want size %d", im, want)
	}
	if im.Created.Before(before.Add(-time.Second)) || im.Created.After(time.Now()) {
		t.Errorf("created %v", im.Created)
	}
	for range 2 { // once more after opening the store again
		wantImage(t, s, "a", a)
		wantImage(t, s, "b", b)
		wantImage(t, s, "empty", nil)
		wantClean(t, s)
		r, err := s.OpenImage("a")
		if err != nil {
			t.Fatal(err)
		}
		if at := r.Attachments(); len(at) != 1 || at[0] != (Attachment{"info", 7}) {
			t.Errorf("attachments %v", at)
		}
		if b, err := r.Attachment("info"); string(b) != "about a" || err != nil {
			t.Errorf("attachment %q %v", b, err)
		}
		if _, err := r.Attachment("nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		r.Close()
		list, err := s.List()
		if err != nil || len(list) != 3 || list[0].Name != "a" || list[1].Name != "b" || list[2].Name != "empty" {
			t.Errorf("list %v %v", list, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{PackSize: 1 << 20})
	}
	wantModes(t, dir)
}

func wantModes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		st, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; err == nil && st.Mode().Perm() != want {
			t.Errorf("%s has mode %o", path, st.Mode().Perm())
		}
		if strings.HasSuffix(path, disk.TmpExt) {
			t.Errorf("%s was left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDedupe(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	chunks := testImage(5, 500)
	first := ingest(t, s, "a", chunks)
	st1, _ := s.Stats()
	second := ingest(t, s, "b", chunks)
	if second.Unique > 200 { // the attachment differs
		t.Errorf("the same again cost %d bytes, the first time %d", second.Unique, first.Unique)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	changed := append([][]byte{[]byte("new in front")}, chunks...)
	changed[250] = bytes.Repeat([]byte("changed "), 8192)
	third := ingest(t, s, "c", changed)
	if third.Unique > 16<<10 {
		t.Errorf("two changed chunks cost %d bytes", third.Unique)
	}
	st, err := s.Stats()
	if err != nil || st.Images != 3 || st.Logical != first.Size*2+third.Size || st.Stored > st1.Stored+32<<10 || st.Ratio < 3 {
		t.Errorf("stats %+v after one %+v: %v", st, st1, err)
	}
	wantImage(t, s, "c", changed)
	wantClean(t, s)
}

// TestDedupeAcross puts the same chunks by several ingests at once.
func TestDedupeAcross(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	chunks := testImage(6, 300)
	alone := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	one := ingest(t, alone, "x", chunks)
	var wg sync.WaitGroup
	var sum int64
	var mu sync.Mutex
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			im := ingest(t, s, fmt.Sprint("x", i), chunks)
			mu.Lock()
			sum += im.Unique
			mu.Unlock()
		}()
	}
	wg.Wait()
	if sum > one.Unique+1000 {
		t.Errorf("four at once stored %d bytes, one alone %d", sum, one.Unique)
	}
	for i := range 4 {
		wantImage(t, s, fmt.Sprint("x", i), chunks)
	}
	wantClean(t, s)
}

func TestNames(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("x", 256)} {
		if _, err := s.Begin(context.Background(), bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	in, err := s.Begin(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(context.Background(), "a"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	in.Abort()
	ingest(t, s, "a", testImage(1, 3))
	ingest(t, s, "b", testImage(2, 3))
	if err := s.Rename("a", "b"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := s.Rename("none", "c"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Rename("a", "ä b\n"); err != nil {
		t.Error(err)
	}
	wantImage(t, s, "ä b\n", testImage(1, 3))
	if _, err := s.Get("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Remove("b"); err != nil {
		t.Error(err)
	}
	if err := s.Remove("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	dir := s.dir
	s.Close()
	s = open(t, dir, Options{})
	if list, _ := s.List(); len(list) != 1 || list[0].Name != "ä b\n" {
		t.Errorf("%v", list)
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	in, err := s.Begin(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range testImage(1, 200) {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := in.Put(chunk.Hash{}, []byte("x")); !errors.Is(err, ErrAborted) {
		t.Error(err)
	}
	if err := in.Commit(); !errors.Is(err, ErrAborted) {
		t.Error(err)
	}
	if _, err := in.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrAborted) {
		t.Error(err)
	}
	if err := in.Wait(context.Background(), 1<<40); !errors.Is(err, ErrAborted) {
		t.Error(err)
	}
	if list, _ := s.List(); len(list) != 0 {
		t.Error(list)
	}
	if ents, _ := os.ReadDir(filepath.Join(dir, layout.Packs)); len(ents) != 0 {
		t.Errorf("an ingest that was alone left %d packs", len(ents))
	}
	ingest(t, s, "a", testImage(1, 200))
	wantImage(t, s, "a", testImage(1, 200))
	wantClean(t, s)
}

func TestContext(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	ctx, cancel := context.WithCancel(context.Background())
	in, err := s.Begin(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	wctx, wcancel := context.WithCancel(context.Background())
	wcancel()
	if err := in.Wait(wctx, 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	cancel()
	if err := in.Put(chunk.Sum([]byte("x")), []byte("x")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := in.Commit(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	in.Abort()
	ingest(t, s, "a", nil)
}

func TestPutRefuses(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for _, c := range [][]byte{nil, make([]byte, chunk.MaxLen+1), []byte("wrong hash")} {
		in, err := s.Begin(context.Background(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Put(chunk.Hash{1}, c); err == nil {
			t.Errorf("%d bytes were taken", len(c))
		}
		in.Abort()
	}
}

func TestClosed(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	in, err := s.Begin(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	c := []byte("something")
	if err := in.Put(chunk.Sum(c), c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.Put(chunk.Sum(c), c); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := in.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := s.List(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Begin(context.Background(), "b"); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.GC(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
