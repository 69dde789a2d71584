package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
)

// The pack format; doc.go draws it. Everything is little endian.
const (
	packMagic   = "ckptpack"
	packEnd     = "kcaptpkc"
	packVersion = 1
	HeadLen     = 40 // magic 8, version 4, flags 4, id 16, created 8
	packSealed  = 1  // flag: the chunks are encrypted
	EntryLen    = 40 // hash 32, stored length 4, raw length and codec 4
	TailLen     = 64 // count 4, version 4, id 16, BLAKE3 32, magic 8

	maxPackEntries = 1 << 16
	maxAppend      = 64 // chunks written at once
	MaxLen         = 1 << 31
)

// Entry is one chunk in a pack.
type Entry struct {
	Hash   chunk.Hash
	Off    uint32 // in the pack file
	Stored uint32 // bytes there
	Raw    uint32 // bytes of the chunk
	Codec  uint8
}

// Loc says where a chunk stands.
type Loc struct {
	P      *Pack
	Off    uint32
	Stored uint32
	Raw    uint32
	Codec  uint8
}

// Loc is where a chunk of p stands.
func (e *Entry) Loc(p *Pack) Loc {
	return Loc{P: p, Off: e.Off, Stored: e.Stored, Raw: e.Raw, Codec: e.Codec}
}

// Entry is what a pack says of a chunk at a place.
func (l *Loc) Entry(h *chunk.Hash) Entry {
	return Entry{Hash: *h, Off: l.Off, Stored: l.Stored, Raw: l.Raw, Codec: l.Codec}
}

// Head encodes the header.
func Head(sec *secret.Secrets, id disk.ID, created int64) []byte {
	var flags uint32
	if sec != nil {
		flags |= packSealed
	}
	b := make([]byte, 0, HeadLen)
	b = append(b, packMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, id[:]...)
	return binary.LittleEndian.AppendUint64(b, uint64(created))
}

// Footer encodes the list of chunks and the tail. Offsets are not stored: the chunks
// stand one after the other.
func Footer(sec *secret.Secrets, id disk.ID, head []byte, entries []Entry) []byte {
	b := make([]byte, 0, len(entries)*EntryLen+TailLen)
	for i := range entries {
		e := &entries[i]
		b = append(b, e.Hash[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.Stored)
		b = binary.LittleEndian.AppendUint32(b, e.Raw|uint32(e.Codec)<<24)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = append(b, id[:]...)
	sum := footerSum(sec, head, b)
	b = append(b, sum[:]...)
	return append(b, packEnd...)
}

func footerSum(sec *secret.Secrets, head, footer []byte) (sum chunk.Hash) {
	h := sec.NewSum()
	h.Write(head)
	h.Write(footer)
	h.Sum(sum[:0])
	return sum
}

// Info is what a pack says of itself.
type Info struct {
	ID      disk.ID
	Created int64
	Entries []Entry
}

var ErrCut = errors.New("the pack is cut or its footer is damaged")

// Read reads and checks header and footer of a pack of size bytes.
func Read(sec *secret.Secrets, r io.ReaderAt, size int64) (*Info, error) {
	if size < HeadLen+TailLen || size > MaxLen {
		return nil, fmt.Errorf("%w: it is %d bytes long", ErrCut, size)
	}
	head := make([]byte, HeadLen)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	tail := make([]byte, TailLen)
	if _, err := r.ReadAt(tail, size-TailLen); err != nil {
		return nil, fmt.Errorf("reading the footer: %w", err)
	}
	if string(head[:8]) != packMagic || string(tail[56:]) != packEnd {
		return nil, fmt.Errorf("%w: no magic", ErrCut)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != packVersion {
		return nil, fmt.Errorf("pack version %d is not known", v)
	}
	switch f := binary.LittleEndian.Uint32(head[12:]); {
	case f&^packSealed != 0:
		return nil, fmt.Errorf("pack flags %#x are not known", f)
	case f&packSealed != 0 != (sec != nil):
		return nil, fmt.Errorf("pack flags %#x do not fit the store, which has %s", f, sec.Describe())
	}
	n := int64(binary.LittleEndian.Uint32(tail))
	if n > maxPackEntries || HeadLen+n*EntryLen+TailLen > size {
		return nil, fmt.Errorf("%w: %d chunks cannot be in %d bytes", ErrCut, n, size)
	}
	foot := make([]byte, n*EntryLen+24)
	if _, err := r.ReadAt(foot, size-TailLen-n*EntryLen); err != nil {
		return nil, fmt.Errorf("reading the footer: %w", err)
	}
	if footerSum(sec, head, foot) != chunk.Hash(tail[24:56]) || string(head[16:32]) != string(tail[8:24]) {
		return nil, fmt.Errorf("%w: checksum", ErrCut)
	}
	info := &Info{ID: disk.ID(head[16:32]), Created: int64(binary.LittleEndian.Uint64(head[32:]))}
	var err error
	info.Entries, err = decodeEntries(foot[:n*EntryLen], size)
	return info, err
}

func decodeEntries(b []byte, size int64) ([]Entry, error) {
	n := len(b) / EntryLen
	entries := make([]Entry, n)
	off, end := int64(HeadLen), size-TailLen-int64(len(b))
	for i := range entries {
		e := &entries[i]
		rec := b[i*EntryLen:]
		copy(e.Hash[:], rec)
		e.Stored = binary.LittleEndian.Uint32(rec[32:])
		raw := binary.LittleEndian.Uint32(rec[36:])
		e.Raw, e.Codec = raw&0xffffff, uint8(raw>>24)
		e.Off = uint32(off)
		off += int64(e.Stored)
		if e.Stored == 0 || e.Raw == 0 || e.Raw > chunk.MaxLen || off > end {
			return nil, fmt.Errorf("%w: chunk %d of %d is out of bounds", ErrCut, i, n)
		}
	}
	if off != end {
		return nil, fmt.Errorf("%w: %d bytes belong to no chunk", ErrCut, end-off)
	}
	return entries, nil
}
