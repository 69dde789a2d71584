package image_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/klauspost/compress/zstd"
)

// zst and gz compress b.
func zst(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func gz(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// plain decompresses b and verifies what comes out.
func plain(t *testing.T, b []byte) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	r, size, c, err := image.Plain(bytes.NewReader(b), int64(len(b)), inFolder(dir))
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	o, err := image.Open(r, size)
	if err != nil {
		return nil, err
	}
	if err := o.Verify(t.Context(), nil); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(r, 0, size))
}

func TestPlain(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	padded := append(bytes.Clone(b), make([]byte, 3<<20)...)
	for name, in := range map[string][]byte{
		"plain": b, "zst": zst(t, b), "gz": gz(t, b), "zst and zeros": zst(t, padded), "gz in two parts": append(gz(t, b[:5000]), gz(t, b[5000:])...),
		"zst in two frames": append(zst(t, b[:5000]), zst(t, b[5000:])...),
	} {
		got, err := plain(t, in)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestPlainErrors(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	z, g := zst(t, b), gz(t, b)
	damaged := func(in []byte, at int) []byte {
		out := bytes.Clone(in)
		out[at] ^= 0x55
		return out
	}
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"empty":              {nil, image.ErrNotImage},
		"zst of nothing":     {zst(t, nil), image.ErrNotImage},
		"zst of a text":      {zst(t, []byte("hello")), image.ErrNotImage},
		"gz of a text":       {gz(t, bytes.Repeat([]byte("hello"), 5000)), image.ErrNotImage},
		"zst cut":            {z[:len(z)/2], image.ErrCut},
		"zst cut at the end": {z[:len(z)-1], image.ErrCut},
		"zst of a cut one":   {zst(t, b[:len(b)-1]), image.ErrCut},
		"zst of a cut head":  {zst(t, b[:100]), image.ErrCut},
		"gz cut":             {g[:len(g)/2], image.ErrCut},
		"gz cut in its head": {g[:4], image.ErrCut},
		"gz of a cut one":    {gz(t, b[:9000]), image.ErrCut},
		"zst damaged":        {damaged(z, len(z)-2), image.ErrCorrupt},
		"gz damaged":         {damaged(g, len(g)-6), image.ErrCorrupt},
		"zst and more":       {zst(t, append(bytes.Clone(b), 0, 0, 1)), image.ErrCorrupt},
	} {
		if _, err := plain(t, c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, _, _, err := image.Plain(bytes.NewReader(z), int64(len(z)), inFolder("/nowhere/at/all")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
	if _, _, _, err := image.Plain(brokenReader{z[:len(z)/2]}, int64(len(z)), inFolder(t.TempDir())); !errors.Is(err, errDisk) {
		t.Errorf("broken disk: %v", err)
	}
}

// A decompression bomb is not unpacked beyond what its header announces, and a GiB of zeros.
func TestPlainBomb(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), nil)
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 8<<20)
	for range 160 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := plain(t, out.Bytes()); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("%d bytes that unpack to a GiB of nothing: %v", out.Len(), err)
	}
}

func inFolder(dir string) func() (*os.File, error) {
	return func() (*os.File, error) { return image.TempFile(dir) }
}
