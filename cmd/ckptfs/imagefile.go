package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// imageFile is an open image: its reader, and what has to be closed after it.
type imageFile struct {
	*image.Reader
	plain   io.ReaderAt // its bytes
	size    int64
	closers []io.Closer
}

// openImage opens the image name, "-" being standard input. Compressed images are
// decompressed and streams are copied to an unlinked temporary file first, since an image
// is read at random.
func openImage(c *console, name string) (*imageFile, error) {
	return openImageWith(c, name, image.Open)
}

// openImageWith is openImage with the function that opens what is plain.
func openImageWith(c *console, name string, open func(io.ReaderAt, int64) (*image.Reader, error)) (*imageFile, error) {
	f, err := openInput(c, name)
	if err != nil {
		return nil, err
	}
	im := &imageFile{closers: []io.Closer{f}}
	if err := im.open(f, open); err != nil {
		return nil, fmt.Errorf("%s: %w", label(name), errors.Join(err, im.Close()))
	}
	return im, nil
}

func (im *imageFile) open(f *os.File, open func(io.ReaderAt, int64) (*image.Reader, error)) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	plain, n, closer, err := image.Plain(f, st.Size(), func() (*os.File, error) { return image.TempFile("") })
	if err != nil {
		return err
	}
	if closer != nil {
		im.closers = append(im.closers, closer)
	}
	im.plain, im.size = plain, n
	im.Reader, err = open(plain, n)
	return err
}

// Close closes everything behind the image.
func (im *imageFile) Close() error {
	var err error
	for i := len(im.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, im.closers[i].Close())
	}
	return err
}

// verify reads the whole image and compares it with its hashes.
func (im *imageFile) verify(ctx context.Context, c *console) error {
	bar := newProgress(c, "checking", 0)
	defer bar.end()
	return im.Verify(ctx, bar.set)
}

func label(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

// openInput opens name for reading at random.
func openInput(c *console, name string) (*os.File, error) {
	f := c.In
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, err
		}
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case st.IsDir():
		return nil, usagef("%s is a directory, not an image", name)
	case st.Mode().IsRegular():
		return f, nil
	case isTerminal(f):
		return nil, usagef("an image cannot be typed: redirect standard input or name a file")
	}
	return spool(f, label(name))
}

// spool copies a stream to an unlinked temporary file.
func spool(r io.ReadCloser, from string) (*os.File, error) {
	t, err := os.CreateTemp("", "ckptfs-*")
	if err != nil {
		return nil, err
	}
	err = os.Remove(t.Name())
	if err == nil {
		_, err = io.Copy(t, r)
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("copying %s to a temporary file: %w", from, errors.Join(err, t.Close()))
	}
	return t, nil
}
