package quickread

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{0, 1, 1023, 3072, 3073, 4095, 4096, 4097, 100_000} {
		path, want := filepath.Join(dir, "f"), bytes.Repeat([]byte("0123456"), n/7+1)[:n]
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := File(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", n, len(got), err)
		}
	}
	if b, err := File("/proc/self/status"); err != nil || !bytes.HasPrefix(b, []byte("Name:")) {
		t.Errorf("status: %q %v", b, err)
	}
	var at *fs.PathError
	if _, err := File(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &at) || at.Op != "open" {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := File(dir); !errors.As(err, &at) || at.Op != "read" {
		t.Errorf("a directory: %v", err)
	}
}

func TestNumbers(t *testing.T) {
	dir := t.TempDir()
	want := []int{}
	for i := range 3000 { // more than fit into one read
		want = append(want, i)
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "self"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Numbers(dir)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d numbers, %v, want %d", len(got), err, len(want))
	}
	if _, err := Numbers(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no directory: %v", err)
	}
}
