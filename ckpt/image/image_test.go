package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/zeebo/blake3"
)

// check opens and verifies whatever b is.
func check(b []byte) error {
	r, err := image.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	return r.Verify(context.Background(), nil)
}

func TestRoundTrip(t *testing.T) {
	m := imagetest.Manifest()
	b := imagetest.Bytes(t, m, imagetest.Fill)
	r := imagetest.Open(t, b)
	got := r.Manifest
	for _, c := range []struct{ got, want any }{
		{got.Tasks[0].Timers, m.Tasks[0].Timers}, {got.Tasks[0].Pending, m.Tasks[0].Pending}, {got.Tasks[2], m.Tasks[2]},
		{got.MMs[1].VMAs, m.MMs[1].VMAs}, {got.Files, m.Files}, {got.Segments, m.Segments}, {got.Blobs, m.Blobs},
		{got.Host, m.Host}, {got.FDTables, m.FDTables}, {got.FSs, m.FSs}, {got.Lost, m.Lost}, {got.Sighands[0], m.Sighands[0]},
		{got.Tasks[0].Threads[1], m.Tasks[0].Threads[1]},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("got %+v\nwant %+v", c.got, c.want)
		}
	}
	head, l, err := image.Encode(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(head, b[:l.HeadLen]) || l.Total != int64(len(b)) {
		t.Error("what was decoded encodes to something else")
	}
	if n := len(b); r.Root() == (image.Hash{}) || !bytes.Equal(b[n-40:n-8], sum(r)) {
		t.Errorf("root hash %v", r.Root())
	}
}

func sum(r *image.Reader) []byte { h := r.Root(); return h[:] }

func TestOffsets(t *testing.T) {
	r := imagetest.Open(t, imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill))
	m := r.Manifest
	word := func(off int64) uint64 {
		b := make([]byte, 8)
		if _, err := r.ReadAt(b, off); err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
		return binary.LittleEndian.Uint64(b)
	}
	seen := 0
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			for k, e := range m.MMs[i].VMAs[j].Extents {
				seen++
				if got := word(r.VMAOffset(i, j, k)); got != e.Start {
					t.Errorf("mm %d vma %d extent %d: found %#x, want %#x", i, j, k, got, e.Start)
				}
			}
			if off := r.VMAOffset(i, j, len(m.MMs[i].VMAs[j].Extents)); off != -1 {
				t.Errorf("mm %d vma %d: an extent after the last is at %d", i, j, off)
			}
		}
	}
	if seen != 8 {
		t.Errorf("%d extents", seen)
	}
	for k, e := range m.Segments[0].Extents {
		if got := word(r.SegmentOffset(1, k)); got != e.Start|1<<48 {
			t.Errorf("segment extent %d: found %#x", k, got)
		}
	}
	for _, off := range []int64{r.VMAOffset(-1, 0, 0), r.VMAOffset(2, 0, 0), r.VMAOffset(0, -1, 0), r.VMAOffset(0, 5, 0), r.VMAOffset(0, 0, -1),
		r.SegmentOffset(0, 0), r.SegmentOffset(2, 0), r.SegmentOffset(1, 2), r.SegmentOffset(1<<32-1, 0)} {
		if off != -1 {
			t.Errorf("something that is not there is at %d", off)
		}
	}
}

func TestBlob(t *testing.T) {
	r := imagetest.Open(t, imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill))
	b, err := r.Blob(1)
	if err != nil || len(b) != 5000 || binary.LittleEndian.Uint64(b[8:]) != 8|1<<48 {
		t.Errorf("blob 1: %d bytes, %v", len(b), err)
	}
	again, err := io.ReadAll(r.BlobReader(1))
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("through a reader: %d bytes, %v", len(again), err)
	}
	if b, err := r.Blob(2); err != nil || len(b) != 0 {
		t.Errorf("the empty blob: %v, %v", b, err)
	}
	for _, ref := range []image.ObjRef{0, 3, 1<<32 - 1} {
		if _, err := r.Blob(ref); err == nil {
			t.Errorf("there is a blob %d", ref)
		}
		if b, err := io.ReadAll(r.BlobReader(ref)); err != nil || len(b) != 0 {
			t.Errorf("there is a blob %d to read", ref)
		}
	}
}

func TestCut(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	r := imagetest.Open(t, b)
	l := r.Layout
	places := []int64{1, 7, 8, 63, 64, 4095, 4096, l.HeadLen - 1, l.HeadLen, l.HeadLen + l.DataLen - 1, l.HeadLen + l.DataLen, l.Total - 40, l.Total - 8, l.Total - 1}
	for _, c := range l.Chunks {
		places = append(places, c.Off+1, c.Off+int64(c.Len))
	}
	for range 200 {
		places = append(places, 1+rand.Int64N(l.Total-1))
	}
	for _, n := range places {
		err := check(b[:n])
		var cut *image.CutError
		if !errors.Is(err, image.ErrCut) || !errors.As(err, &cut) || cut.Have != n || cut.Want != l.Total && n >= 64 {
			t.Errorf("cut at %d of %d: %v", n, l.Total, err)
		}
		// The size may also be a promise that the file does not keep.
		_, err = image.Open(bytes.NewReader(b[:n]), l.Total)
		if n <= l.HeadLen && !errors.Is(err, image.ErrCut) {
			t.Errorf("ends early at %d: %v", n, err)
		}
	}
	if err := check(nil); !errors.Is(err, image.ErrNotImage) {
		t.Errorf("an empty file: %v", err)
	}
}

func TestTrailing(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	for _, n := range []int{1, 4096, 1 << 20} {
		padded := append(bytes.Clone(b), make([]byte, n)...)
		if err := check(padded); err != nil {
			t.Errorf("%d zeros: %v", n, err)
		}
		padded[len(padded)-1] = 1
		if err := check(padded); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%d bytes that are not zeros: %v", n, err)
		}
	}
}

// Every byte but those of the data, one bit each, and some of the data.
func TestFlips(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	l := imagetest.Open(t, b).Layout
	flip := func(i int64) {
		bit := byte(1) << rand.IntN(8)
		b[i] ^= bit
		err := check(b)
		b[i] ^= bit
		if err == nil {
			t.Fatalf("bit %#x of byte %d does not matter", bit, i)
		}
		known := false
		for _, want := range []error{image.ErrNotImage, image.ErrVersion, image.ErrCorrupt} {
			known = known || errors.Is(err, want)
		}
		if !known {
			t.Errorf("bit %#x of byte %d: %v", bit, i, err)
		}
	}
	for i := int64(0); i < l.Total; i++ {
		if i == l.HeadLen {
			i += l.DataLen
		}
		flip(i)
	}
	for range 100 {
		flip(l.HeadLen + rand.Int64N(l.DataLen))
	}
	var corrupt *image.CorruptError
	b[l.HeadLen+100] ^= 4
	if err := check(b); !errors.As(err, &corrupt) || l.Chunks[corrupt.Chunk].Region.Kind != image.RegionVMA || corrupt.Off != l.HeadLen {
		t.Errorf("damage in the first chunk of data: %v", err)
	}
}

// forge puts any manifest below a header that fits it.
func forge(body []byte, change func(head []byte)) []byte {
	pad := func(n int) int { return (n + 4095) &^ 4095 }
	head := make([]byte, 4096+pad(len(body)))
	le := binary.LittleEndian
	copy(head, "\x89CKPT\r\n\x1a")
	for i, v := range []uint32{1, 4096, 4096, 65536} {
		le.PutUint32(head[8+4*i:], v)
	}
	chunks := (len(head) + 65535) / 65536
	for i, v := range []int{len(body), len(head), 0, 40 + 32*chunks, len(head) + 40 + 32*chunks, chunks} {
		le.PutUint64(head[24+8*i:], uint64(v))
	}
	copy(head[4096:], body)
	if change != nil {
		change(head)
	}
	h := blake3.New()
	h.Write(head[:4064])
	h.Write(head[4096:])
	h.Sum(head[4064:4064])
	return append(head, make([]byte, 40+32*chunks)...)
}

// body is the manifest of an image.
func body(b []byte) []byte {
	return bytes.Clone(b[4096 : 4096+binary.LittleEndian.Uint64(b[24:])])
}

func TestHeader(t *testing.T) {
	manifest := body(imagetest.Bytes(t, imagetest.Manifest(), nil))
	put := func(off int, v uint64) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) }
	}
	for name, c := range map[string]struct {
		change func([]byte)
		want   error
	}{
		"magic":            {func(b []byte) { b[1] = 'X' }, image.ErrNotImage},
		"text mode":        {func(b []byte) { copy(b[5:], "\n\x1a") }, image.ErrNotImage},
		"from the future":  {func(b []byte) { b[8] = 3 }, image.ErrVersion},
		"version 0":        {func(b []byte) { b[8] = 0 }, image.ErrCorrupt},
		"header length":    {func(b []byte) { b[13] = 0 }, image.ErrCorrupt},
		"page size":        {func(b []byte) { b[17] = 0 }, image.ErrCorrupt},
		"chunk size":       {func(b []byte) { b[22] = 2 }, image.ErrCorrupt},
		"no manifest":      {put(24, 0), image.ErrCorrupt},
		"huge manifest":    {put(24, 1<<40), image.ErrCorrupt},
		"negative":         {put(24, 1<<63), image.ErrCorrupt},
		"head":             {put(32, 1<<40), image.ErrCorrupt},
		"data":             {put(40, 1<<63), image.ErrCorrupt},
		"data, no pages":   {put(40, 17), image.ErrCorrupt},
		"trailer":          {put(48, 39), image.ErrCorrupt},
		"huge trailer":     {put(48, 40+32<<50), image.ErrCorrupt},
		"total":            {put(56, 5), image.ErrCorrupt},
		"chunks":           {put(64, 1<<60), image.ErrHostile},
		"data not there":   {func([]byte) {}, image.ErrHostile}, // the manifest has data, this header none
		"data in the head": {func(b []byte) { put(40, 1<<61)(b); put(56, binary.LittleEndian.Uint64(b[56:])+1<<61)(b) }, image.ErrCut},
	} {
		if err := check(forge(manifest, c.change)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := check([]byte("#!/bin/sh\nexit 0\n")); !errors.Is(err, image.ErrNotImage) {
		t.Errorf("a script: %v", err)
	}
}

// brokenReader fails as a disk does.
type brokenReader struct{ b []byte }

var errDisk = errors.New("input/output error")

func (r brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(r.b)) {
		return 0, errDisk
	}
	return copy(p, r.b[off:]), nil
}

func TestReadErrors(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	for n := range len(b) / 4096 {
		_, err := image.Open(brokenReader{b[:n*4096]}, int64(len(b)))
		if !errors.Is(err, errDisk) || errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrCut) {
			t.Errorf("broken after %d: %v", n*4096, err)
		}
	}
	_, err := image.Open(bytes.NewReader(b), -5)
	if !errors.Is(err, image.ErrNotImage) {
		t.Errorf("negative size: %v", err)
	}
}

func TestVerify(t *testing.T) {
	b := imagetest.Bytes(t, imagetest.Manifest(), imagetest.Fill)
	r := imagetest.Open(t, b)
	var last, total int64
	err := r.Verify(t.Context(), func(done, of int64) {
		if done <= last || of < done {
			t.Errorf("progress from %d to %d of %d", last, done, of)
		}
		last, total = done, of
	})
	if err != nil || last != total || total != r.Layout.HeadLen+r.Layout.DataLen {
		t.Errorf("%d of %d done, %v", last, total, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTrailerErrors(t *testing.T) {
	_, l, err := image.Encode(imagetest.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Trailer(make([]image.Hash, len(l.Chunks)-1)); err == nil {
		t.Error("a trailer of too few hashes")
	}
}
