package image

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"
)

// Version is the format that this package writes, and the newest it reads.
const Version = 2

// The units of the format, bytes.
const (
	PageSize  = 4096     // extents and the parts of the file are multiples of it
	ChunkSize = 16 << 10 // a chunk is never larger; store/doc.go has the measurements
)

// chunkSizes are those of all versions of the format, and all they differ in.
var chunkSizes = [...]uint32{1: 64 << 10, 2: ChunkSize}

// MaxManifest bounds the manifest, bytes: about 17 million extents.
const MaxManifest = 256 << 20

// maxChunks bounds the list of chunks: 2 TiB of dense memory.
const maxChunks = 1 << 27

const (
	headerLen   = 4096
	headHashOff = headerLen - len(Hash{})
	totalEnd    = 64 // the header up to and with the total size

	magic    = "\x89CKPT\r\n\x1a"
	endMagic = "\x89ckptEND"

	footerLen = len(Hash{}) + len(endMagic) // of the trailer, after the hashes of the chunks
)

// Hash is a BLAKE3 hash.
type Hash [32]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return fmt.Sprintf("%x", h[:]) }

// HashOf returns the hash of one chunk.
func HashOf(chunk []byte) Hash { return blake3.Sum256(chunk) }

// header is what the first page of an image says. The fields that never change (lengths of
// header, page and chunk) are checked and not kept.
type header struct {
	version  uint32
	manifest int64 // bytes, without padding
	head     int64
	data     int64
	trailer  int64
	total    int64
	chunks   int64
}

// newHeader derives the header from the layout and the length of the manifest.
func newHeader(l *Layout, manifest int) header {
	return header{version: l.Version, manifest: int64(manifest), head: l.HeadLen, data: l.DataLen, trailer: l.TrailerLen, total: l.Total, chunks: l.chunks}
}

// put writes the header, all but the hash of the head, to the first page of head.
func (h *header) put(head []byte) {
	le := binary.LittleEndian
	copy(head, magic)
	le.PutUint32(head[8:], h.version)
	le.PutUint32(head[12:], headerLen)
	le.PutUint32(head[16:], PageSize)
	le.PutUint32(head[20:], chunkSizes[h.version])
	for i, v := range h.lengths() {
		le.PutUint64(head[24+8*i:], uint64(*v))
	}
}

// lengths are the 64-bit fields in their order.
func (h *header) lengths() [6]*int64 {
	return [...]*int64{&h.manifest, &h.head, &h.data, &h.trailer, &h.total, &h.chunks}
}

// parseHeader reads what there is of the first page of a file of the given size. It trusts
// nothing; the lengths it returns are consistent with each other and with the size.
func parseHeader(b []byte, size int64) (header, error) {
	var h header
	if n := min(len(b), len(magic)); n == 0 || string(b[:n]) != magic[:n] {
		return h, ErrNotImage
	}
	if len(b) < totalEnd {
		return h, &CutError{Have: size, Want: headerLen}
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v > Version {
		return h, fmt.Errorf("%w (%d, this version reads up to %d); use a newer version of ckptfs", ErrVersion, v, Version)
	} else if v == 0 {
		return h, &CorruptError{Chunk: 0, Off: 8, What: fmt.Sprintf("there is no version %d of the format", v)}
	} else {
		h.version = v
	}
	for i, want := range [...]uint32{headerLen, PageSize, chunkSizes[h.version]} {
		if got := le.Uint32(b[12+4*i:]); got != want {
			return h, &CorruptError{Chunk: 0, Off: int64(12 + 4*i), What: fmt.Sprintf("the header says %d where %d must stand", got, want)}
		}
	}
	for i, v := range h.lengths() {
		if off := 24 + 8*i; len(b) >= off+8 {
			*v = int64(le.Uint64(b[off:]))
		}
	}
	if err := h.check(); err != nil {
		return h, err
	}
	if size < h.total {
		return h, &CutError{Have: size, Want: h.total}
	}
	return h, nil
}

// check compares the lengths with each other, so that a wrong one is not taken for a cut file.
// The number of chunks is compared with the manifest later.
func (h *header) check() error {
	wrong := func(off int64, what string) error {
		return &CorruptError{Chunk: 0, Off: off, What: "the header has " + what}
	}
	const limit = 1 << 62
	switch {
	case h.manifest <= 0 || h.manifest > MaxManifest:
		return wrong(24, fmt.Sprintf("a manifest of %d bytes, the limit is %d", h.manifest, MaxManifest))
	case h.head != headerLen+padded(h.manifest):
		return wrong(32, fmt.Sprintf("a head of %d bytes, which does not fit the manifest of %d", h.head, h.manifest))
	case h.data < 0 || h.data%PageSize != 0 || h.data > limit:
		return wrong(40, fmt.Sprintf("%d bytes of data, which cannot be", h.data))
	case h.trailer < int64(footerLen) || (h.trailer-int64(footerLen))%int64(len(Hash{})) != 0 || h.trailer > maxChunks*int64(len(Hash{}))+int64(footerLen):
		return wrong(48, fmt.Sprintf("a trailer of %d bytes, which cannot be", h.trailer))
	case h.total != h.head+h.data+h.trailer:
		return wrong(56, fmt.Sprintf("a total of %d bytes, which is not the sum of its parts", h.total))
	}
	return nil
}

// padded rounds up to whole pages; n is at most 1<<62.
func padded(n int64) int64 { return (n + PageSize - 1) &^ (PageSize - 1) }

// headHash is the hash that the header carries of itself and the manifest.
func headHash(head []byte) Hash {
	var sum Hash
	h := blake3.New()
	h.Write(head[:headHashOff]) // a Hasher's Write returns no error
	h.Write(head[headerLen:])
	h.Sum(sum[:0])
	return sum
}

// rootContext keeps root hashes apart from all other hashes. It never changes.
const rootContext = "ckptfs 2026-11-23 root hash of an image"
