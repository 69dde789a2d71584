package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
)

func testKey(t testing.TB) *Key {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := NewKeyFile(path); err != nil {
		t.Fatal(err)
	}
	k, err := ReadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSealed stores images with a key and looks at what is on the disk.
func TestSealed(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := open(t, dir, Options{Key: key, PackSize: 1 << 20})
	secret := bytes.Repeat([]byte("the secret of the 7th page "), 2000)
	chunks := append(testImage(1, 120), secret)
	ingest(t, s, "private-name", chunks)
	ingest(t, s, "again", chunks)
	wantImage(t, s, "private-name", chunks)
	st, err := s.Stats()
	if err != nil || st.Stored > st.Logical*2/3 {
		t.Errorf("not deduplicated: %+v, %v", st, err)
	}
	ingest(t, s, "other", testImage(2, 60))
	if err := s.Remove("other"); err != nil {
		t.Fatal(err)
	}
	gc(t, s) // moves chunks between packs, whose keys differ
	wantImage(t, s, "again", chunks)
	wantClean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	known := chunk.Sum(secret)
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, clear := range [][]byte{[]byte("secret of"), []byte("private-name"), []byte("about"), known[:], []byte("CPTN")} {
			if bytes.Contains(b, clear) {
				t.Errorf("%s holds %q", path, clear)
			}
		}
		if st, serr := os.Stat(path); serr != nil || st.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), serr)
		}
		return err
	})
	os.RemoveAll(filepath.Join(dir, layout.Index)) // the packs alone must do
	s = open(t, dir, Options{Key: key})
	wantImage(t, s, "private-name", chunks)
	wantClean(t, s)
}

func TestWrongKey(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := open(t, dir, Options{Key: key})
	ingest(t, s, "a", testImage(1, 20))
	s.Close()
	plain := t.TempDir()
	open(t, plain, Options{}).Close()
	for _, c := range []struct {
		dir  string
		key  *Key
		want KeyError
	}{
		{dir, testKey(t), KeyError{Dir: dir, Sealed: true, Given: true}},
		{dir, nil, KeyError{Dir: dir, Sealed: true}},
		{plain, key, KeyError{Dir: plain, Given: true}},
	} {
		var ke *KeyError
		if _, err := Open(c.dir, Options{Key: c.key}); !errors.As(err, &ke) || *ke != c.want {
			t.Errorf("%v, want %+v", err, c.want)
		}
	}
	s = open(t, dir, Options{Key: key})
	wantImage(t, s, "a", testImage(1, 20))
}

// TestSealedDamage changes every part of an encrypted store: nothing changed is ever read.
func TestSealedDamage(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := open(t, dir, Options{Key: key})
	chunks := testImage(3, 40)
	ingest(t, s, "a", chunks)
	s.Close()
	for _, sub := range []string{layout.Packs, layout.Images} {
		path := files(t, dir, sub)[0]
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{1, 9, len(whole) / 3, len(whole) - 70, len(whole) - 1} {
			b := bytes.Clone(whole)
			b[at] ^= 4
			os.WriteFile(path, b, 0o600)
			s := open(t, dir, Options{Key: key})
			got, err := readImage(s, "a")
			verr := s.Verify(t.Context(), true, nil)
			if err == nil && !bytes.Equal(got, bytes.Join(chunks, nil)) {
				t.Errorf("%s, byte %d: changed bytes were read", sub, at)
			}
			if !errors.Is(verr, ErrDamaged) {
				t.Errorf("%s, byte %d: verify says %v (read: %v)", sub, at, verr, err)
			}
			s.Close()
		}
		os.WriteFile(path, whole, 0o600)
	}
	s = open(t, dir, Options{Key: key})
	wantImage(t, s, "a", chunks)
	wantClean(t, s)
}
