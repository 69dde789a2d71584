package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// maxZstdWindow bounds the memory a zstd frame may ask for: what zstd --ultra --long=29 makes.
const maxZstdWindow = 512 << 20

// Plain returns the image in a file that zstd or gzip compressed, told by its first bytes: it
// is decompressed into a file that temp makes, such as TempFile. Other files are returned as they are, with a
// closer that does nothing. No more is written than the header of the image announces, and an
// error leaves nothing behind.
func Plain(r io.ReaderAt, size int64, temp func() (*os.File, error)) (io.ReaderAt, int64, io.Closer, error) {
	src, err := decompressor(r, size)
	if err != nil {
		return nil, 0, nil, err
	}
	if src == nil {
		return r, size, io.NopCloser(nil), nil
	}
	defer src.Close()
	f, n, err := unpack(src, temp)
	if err != nil {
		return nil, 0, nil, err
	}
	return f, n, f, nil
}

// decompressor returns a reader of the content of a compressed file, or nil for a plain one.
func decompressor(r io.ReaderAt, size int64) (io.ReadCloser, error) {
	start := make([]byte, max(0, min(size, 4)))
	if err := readFull(r, start, 0, "the start"); err != nil {
		return nil, err
	}
	section := io.NewSectionReader(r, 0, size)
	switch {
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(section, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(verifiers))
		if err != nil {
			return nil, fmt.Errorf("cannot decompress the image: %w", err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(section)
		if err != nil {
			return nil, unpackError(err, 0, headerLen)
		}
		return z, nil
	}
	return nil, nil
}

// unpack writes an image to a new file.
func unpack(src io.Reader, temp func() (*os.File, error)) (f *os.File, n int64, err error) {
	page := make([]byte, headerLen)
	got, err := io.ReadFull(src, page)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, 0, unpackError(err, int64(got), headerLen)
	}
	size := int64(got)
	if got == headerLen {
		size = math.MaxInt64 // whether all of it is there shows at the end of the stream
	}
	h, err := parseHeader(page[:got], size)
	if err != nil {
		return nil, 0, err
	}
	if f, err = temp(); err != nil {
		return nil, 0, fmt.Errorf("cannot make a file to decompress the image into: %w", err)
	}
	n, err = copyImage(f, io.MultiReader(bytes.NewReader(page[:got]), src), h.total)
	if err != nil {
		f.Close() // the error that counts is err
		return nil, 0, err
	}
	return f, n, nil
}

// TempFile makes a file in dir ("": the system's folder for such files) that has no name and
// is gone when it is closed.
func TempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "ckptfs-image-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyImage writes the image of total bytes, and drops the zeros after it.
func copyImage(f *os.File, src io.Reader, total int64) (int64, error) {
	buf := make([]byte, verifyRead)
	var done int64
	for {
		n, readErr := src.Read(buf)
		keep := min(int64(n), max(0, total-done))
		if _, err := f.WriteAt(buf[:keep], done); err != nil {
			return done, writeError(err, f.Name(), done, total)
		}
		if i := nonZero(buf[keep:n]); i >= 0 {
			return done, &CorruptError{Chunk: -1, Off: done + keep + int64(i), What: "something that is not zeros follows the end of the image"}
		}
		done += int64(n)
		switch {
		case readErr == io.EOF:
			return min(done, total), nil
		case readErr != nil:
			return done, unpackError(readErr, done, total)
		case done-total > maxTrailingZeros:
			return done, &CorruptError{Chunk: -1, Off: total, What: "more than 1 GiB follows the end of the image"}
		}
	}
}

// writeError says what to do when the disk is full.
func writeError(err error, path string, done, total int64) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("no room in %s to decompress the image: it needs %d bytes and only %d fit; free some space there or decompress it elsewhere: %w", filepath.Dir(path), total, done, err)
	}
	return fmt.Errorf("cannot write the decompressed image to %s: %w", filepath.Dir(path), err)
}

// unpackError tells a cut compressed file from a damaged one.
func unpackError(err error, done, total int64) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return &CutError{Have: done, Want: total}
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("cannot decompress the image: its zstd window is above %d MiB; decompress it with zstd -d --long=31 first: %w", maxZstdWindow>>20, err)
	}
	var sys unix.Errno
	if errors.As(err, &sys) {
		return fmt.Errorf("cannot read the compressed image: %w", err)
	}
	return fmt.Errorf("%w: %w", &CorruptError{Chunk: -1, Off: done, What: "it does not decompress"}, err)
}
