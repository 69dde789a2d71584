package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
)

// explained fails if err is none of the ways in which an image may be unusable.
func explained(t *testing.T, err error) {
	t.Helper()
	for _, known := range []error{image.ErrNotImage, image.ErrCut, image.ErrCorrupt, image.ErrVersion, image.ErrFeature, image.ErrHostile} {
		if errors.Is(err, known) {
			return
		}
	}
	t.Errorf("an error without a kind: %v", err)
}

// exercise uses an image as a restore would.
func exercise(t *testing.T, r *image.Reader) {
	t.Helper()
	if err := image.Print(io.Discard, r); err != nil {
		t.Errorf("Print: %v", err)
	}
	if err := image.JSON(io.Discard, r); err != nil {
		explained(t, err)
	}
	if err := r.Verify(context.Background(), nil); err != nil {
		explained(t, err)
	}
	for i := range r.Manifest.Blobs {
		if r.Manifest.Blobs[i].Len < 1<<20 {
			if _, err := r.Blob(image.ObjRef(i + 1)); err != nil {
				explained(t, err)
			}
		}
	}
	if _, _, err := image.Encode(r.Manifest); err != nil {
		t.Errorf("what was decoded does not encode: %v", err)
	}
}

// FuzzOpen opens any bytes.
func FuzzOpen(f *testing.F) {
	b := imagetest.Bytes(f, imagetest.Manifest(), imagetest.Fill)
	f.Add(b)
	f.Add(b[:5000])
	f.Add(b[:80])
	f.Add(append(bytes.Clone(b), make([]byte, 100)...))
	f.Add([]byte{})
	f.Add(forge([]byte{0xa0}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := image.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			explained(t, err)
			return
		}
		exercise(t, r)
	})
}

// FuzzManifest opens images whose header fits whatever stands in the place of the manifest, so
// that the decoder is reached.
func FuzzManifest(f *testing.F) {
	m := imagetest.Manifest()
	f.Add(body(imagetest.Bytes(f, m, nil)))
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			m.MMs[i].VMAs[j].Extents = nil
		}
	}
	m.Segments[0].Extents, m.Blobs[0].Len = nil, 0
	f.Add(body(imagetest.Bytes(f, m, nil))) // no data: fits the header of forge as it is
	m.Tasks, m.MMs, m.Segments = m.Tasks[:1], m.MMs[:1], m.Segments[:1]
	f.Add(body(imagetest.Bytes(f, m, nil)))
	f.Add([]byte("\xaa\x01\x40\x02\x00\x03\xa0\x05\x9b\x00\x00\x01\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all := forge(b, nil)
		copy(all[len(all)-8:], "\x89ckptEND")
		r, err := image.Open(bytes.NewReader(all), int64(len(all)))
		if err != nil {
			explained(t, err)
			return
		}
		exercise(t, r)
	})
}
