package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/zeebo/blake3"
)

// TestFormat3 reads stores that were written on 2026-11-26 and are never written again: what was at
// rest then stays readable, whatever becomes of the code. In both, images "a" and "b" are settled
// (zstd), "c" is not (MinLZ), and "b" was renamed.
func TestFormat3(t *testing.T) {
	for _, name := range []string{"plain", "sealed"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata/format3", name))); err != nil {
				t.Fatal(err)
			}
			o := Options{Log: func(m string) { t.Error(m) }} // anything unreadable is told
			if name == "sealed" {
				key, err := ReadKeyFile("testdata/format3/key")
				if err != nil {
					t.Fatal(err)
				}
				o.Key = key
			}
			s := open(t, dir, o)
			wantFormat3(t, s)
			if n := codecs(t, s); n[codec.Raw] == 0 || n[codec.Zstd] == 0 || n[codec.Fast] == 0 {
				t.Errorf("chunks by codec: %v", n)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			runs, err := filepath.Glob(filepath.Join(dir, layout.Index, "*"+disk.RunExt))
			if err != nil || len(runs) != 2 {
				t.Fatalf("runs %q, %v", runs, err)
			}
			for _, r := range runs { // the footers say the same
				if err := os.Remove(r); err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, dir, o)
			wantFormat3(t, s)
			settle(t, s)
			wantFormat3(t, s)
		})
	}
}

// wantFormat3 compares images with the list that was made with the stores.
func wantFormat3(t *testing.T, s *Store) {
	t.Helper()
	want, err := os.ReadFile("testdata/format3/images")
	if err != nil {
		t.Fatal(err)
	}
	images, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, im := range images {
		r, err := s.OpenImage(im.Name)
		if err != nil {
			t.Fatal(err)
		}
		data, err := readImage(s, im.Name)
		if err != nil {
			t.Error(err)
		}
		info, err := r.Attachment("info")
		if err != nil {
			t.Error(err)
		}
		r.Close()
		fmt.Fprintf(&got, "%x %d %d %t %q %q %q %q\n", blake3.Sum256(data), im.Size, im.Chunks, im.Kept, im.Name, im.Host, im.Series, info)
	}
	if got.String() != string(want) {
		t.Errorf("images are\n%swanted\n%s", got.String(), want)
	}
	wantClean(t, s)
}
