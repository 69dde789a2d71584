package quickread

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
