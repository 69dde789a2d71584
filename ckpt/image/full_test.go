package image

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk is told with what is needed and what to do.
func TestUnpackDiskFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	_, err = copyImage(full, bytes.NewReader(make([]byte, 5000)), 123456)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "123456") || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}
