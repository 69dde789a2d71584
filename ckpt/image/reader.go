package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxTrailingZeros bounds what may follow an image: tools that write whole blocks pad it.
const maxTrailingZeros = 1 << 30

// maxBlobInMemory bounds what Blob returns; larger ones are read through BlobReader.
const maxBlobInMemory = 1 << 30

// Reader is an image that was opened: its manifest can be relied upon, its data only after
// Verify. It is safe for concurrent use as far as the io.ReaderAt below it is.
type Reader struct {
	Manifest *Manifest
	Layout   *Layout

	r    io.ReaderAt
	root Hash
}

// Open reads header, manifest and the end of the image in the first size bytes of r and checks
// all three. What does not pass is ErrNotImage, ErrVersion, ErrCut, ErrCorrupt, ErrFeature or
// ErrHostile; any other error is r's.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	o, err := open(r, size)
	if err != nil {
		return nil, err
	}
	o.Layout.cut(o.Manifest)
	return o, nil
}

// open is Open but for the list of chunks.
func open(r io.ReaderAt, size int64) (*Reader, error) {
	page := make([]byte, max(0, min(size, headerLen)))
	if err := readFull(r, page, 0, "the header"); err != nil {
		return nil, err
	}
	h, err := parseHeader(page, size)
	if err != nil {
		return nil, err
	}
	head := make([]byte, h.head)
	if err := readFull(r, head, 0, "the manifest"); err != nil {
		return nil, err
	}
	if sum := headHash(head); !bytes.Equal(sum[:], head[headHashOff:headerLen]) {
		return nil, &CorruptError{Chunk: 0, Off: 0, What: "header or manifest do not have the hash that the header says"}
	}
	m, err := decodeManifest(head[headerLen : headerLen+h.manifest])
	if err != nil {
		return nil, err
	}
	l, err := newLayout(m, int(h.manifest), h.version)
	if err != nil {
		return nil, err
	}
	if want := newHeader(l, int(h.manifest)); h != want {
		return nil, bad("header", "its lengths %+v do not fit the manifest, which makes them %+v", h, want)
	}
	o := &Reader{Manifest: m, Layout: l, r: r}
	if err := o.readFooter(); err != nil {
		return nil, err
	}
	return o, o.checkZeros(size)
}

// readFull reads all of b. An end that comes earlier than the size said is ErrCut.
func readFull(r io.ReaderAt, b []byte, off int64, what string) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil // a ReaderAt may return io.EOF with the last byte
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &CutError{Have: off + int64(n), Want: off + int64(len(b))}
	}
	return fmt.Errorf("cannot read %s of the image at offset %d: %w", what, off, err)
}

// readFooter reads root hash and end magic.
func (r *Reader) readFooter() error {
	footer := make([]byte, footerLen)
	off := r.Layout.Total - int64(footerLen)
	if err := readFull(r.r, footer, off, "the trailer"); err != nil {
		return err
	}
	if string(footer[len(Hash{}):]) != endMagic {
		return &CorruptError{Chunk: -1, Off: off + int64(len(Hash{})), What: "the end mark is missing"}
	}
	copy(r.root[:], footer)
	return nil
}

// checkZeros checks what follows the image in a file of this size.
func (r *Reader) checkZeros(size int64) error {
	off := r.Layout.Total
	if size-off > maxTrailingZeros {
		return &CorruptError{Chunk: -1, Off: off, What: fmt.Sprintf("%d bytes follow the end of the image", size-off)}
	}
	buf := make([]byte, min(size-off, 256<<10))
	for off < size {
		b := buf[:min(size-off, int64(len(buf)))]
		if err := readFull(r.r, b, off, "what follows the end"); err != nil {
			return err
		}
		if i := nonZero(b); i >= 0 {
			return &CorruptError{Chunk: -1, Off: off + int64(i), What: "something that is not zeros follows the end of the image"}
		}
		off += int64(len(b))
	}
	return nil
}

// nonZero is the index of the first byte that is not zero, or -1.
func nonZero(b []byte) int {
	for i, c := range b {
		if c != 0 {
			return i
		}
	}
	return -1
}

// Root is the root hash that the image says it has: its identity, once Verify has passed.
func (r *Reader) Root() Hash { return r.root }

// VMAOffset is the file offset of an extent of a VMA, all three counted from 0: mm is an index
// of Manifest.MMs, so an ObjRef less 1. It is -1 for one that is not there.
func (r *Reader) VMAOffset(mm, vma, extent int) int64 { return r.Layout.VMAOffset(mm, vma, extent) }

// SegmentOffset is the file offset of an extent, counted from 0, of a segment, or -1.
func (r *Reader) SegmentOffset(seg ObjRef, extent int) int64 {
	return r.Layout.SegmentOffset(seg, extent)
}

// ReadAt reads bytes of the image, for the offsets of VMAOffset and SegmentOffset.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.r.ReadAt(p, off) }

// BlobReader reads a blob of any size; of one that is not there it is empty.
func (r *Reader) BlobReader(ref ObjRef) *io.SectionReader {
	off := r.Layout.BlobOffset(ref)
	if off < 0 {
		return io.NewSectionReader(r.r, 0, 0)
	}
	return io.NewSectionReader(r.r, off, r.Manifest.Blobs[ref-1].Len)
}

// Blob returns a blob of at most 1 GiB.
func (r *Reader) Blob(ref ObjRef) ([]byte, error) {
	off := r.Layout.BlobOffset(ref)
	if off < 0 {
		return nil, fmt.Errorf("the image has no blob %d", ref)
	}
	n := r.Manifest.Blobs[ref-1].Len
	if n > maxBlobInMemory {
		return nil, fmt.Errorf("blob %d of the image has %d bytes, which is too much to hold in memory", ref, n)
	}
	b := make([]byte, n)
	if err := readFull(r.r, b, off, fmt.Sprintf("blob %d", ref)); err != nil {
		return nil, err
	}
	return b, nil
}
