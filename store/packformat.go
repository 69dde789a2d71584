package store

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
	packMagic    = "ckptpack"
	packEnd      = "kcaptpkc"
	packVersion  = 1
	packHeadLen  = 40 // magic 8, version 4, flags 4, id 16, created 8
	packSealed   = 1  // flag: the chunks are encrypted
	packEntryLen = 40 // hash 32, stored length 4, raw length and codec 4
	packTailLen  = 64 // count 4, version 4, id 16, BLAKE3 32, magic 8

	maxPackEntries = 1 << 16
	maxAppend      = 64 // chunks written at once
	maxPackLen     = 1 << 31
)

// entry is one chunk in a pack.
type entry struct {
	hash   chunk.Hash
	off    uint32 // in the pack file
	stored uint32 // bytes there
	raw    uint32 // bytes of the chunk
	codec  uint8
}

// loc is where a chunk of p stands.
func (e *entry) loc(p *pack) loc {
	return loc{p: p, off: e.off, stored: e.stored, raw: e.raw, codec: e.codec}
}

// entry is what a pack says of a chunk at a place.
func (l *loc) entry(h *chunk.Hash) entry {
	return entry{hash: *h, off: l.off, stored: l.stored, raw: l.raw, codec: l.codec}
}

func packHead(sec *secret.Secrets, id disk.ID, created int64) []byte {
	var flags uint32
	if sec != nil {
		flags |= packSealed
	}
	b := make([]byte, 0, packHeadLen)
	b = append(b, packMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, id[:]...)
	return binary.LittleEndian.AppendUint64(b, uint64(created))
}

// packFooter encodes the list of chunks and the tail. Offsets are not stored: the chunks
// stand one after the other.
func packFooter(sec *secret.Secrets, id disk.ID, head []byte, entries []entry) []byte {
	b := make([]byte, 0, len(entries)*packEntryLen+packTailLen)
	for i := range entries {
		e := &entries[i]
		b = append(b, e.hash[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.stored)
		b = binary.LittleEndian.AppendUint32(b, e.raw|uint32(e.codec)<<24)
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

// packInfo is what a pack says of itself.
type packInfo struct {
	id      disk.ID
	created int64
	entries []entry
}

var errCutPack = errors.New("the pack is cut or its footer is damaged")

// readPack reads and checks header and footer of a pack of size bytes.
func readPack(sec *secret.Secrets, r io.ReaderAt, size int64) (*packInfo, error) {
	if size < packHeadLen+packTailLen || size > maxPackLen {
		return nil, fmt.Errorf("%w: it is %d bytes long", errCutPack, size)
	}
	head := make([]byte, packHeadLen)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	tail := make([]byte, packTailLen)
	if _, err := r.ReadAt(tail, size-packTailLen); err != nil {
		return nil, fmt.Errorf("reading the footer: %w", err)
	}
	if string(head[:8]) != packMagic || string(tail[56:]) != packEnd {
		return nil, fmt.Errorf("%w: no magic", errCutPack)
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
	if n > maxPackEntries || packHeadLen+n*packEntryLen+packTailLen > size {
		return nil, fmt.Errorf("%w: %d chunks cannot be in %d bytes", errCutPack, n, size)
	}
	foot := make([]byte, n*packEntryLen+24)
	if _, err := r.ReadAt(foot, size-packTailLen-n*packEntryLen); err != nil {
		return nil, fmt.Errorf("reading the footer: %w", err)
	}
	if footerSum(sec, head, foot) != chunk.Hash(tail[24:56]) || string(head[16:32]) != string(tail[8:24]) {
		return nil, fmt.Errorf("%w: checksum", errCutPack)
	}
	info := &packInfo{id: disk.ID(head[16:32]), created: int64(binary.LittleEndian.Uint64(head[32:]))}
	var err error
	info.entries, err = decodeEntries(foot[:n*packEntryLen], size)
	return info, err
}

func decodeEntries(b []byte, size int64) ([]entry, error) {
	n := len(b) / packEntryLen
	entries := make([]entry, n)
	off, end := int64(packHeadLen), size-packTailLen-int64(len(b))
	for i := range entries {
		e := &entries[i]
		rec := b[i*packEntryLen:]
		copy(e.hash[:], rec)
		e.stored = binary.LittleEndian.Uint32(rec[32:])
		raw := binary.LittleEndian.Uint32(rec[36:])
		e.raw, e.codec = raw&0xffffff, uint8(raw>>24)
		e.off = uint32(off)
		off += int64(e.stored)
		if e.stored == 0 || e.raw == 0 || e.raw > chunk.MaxLen || off > end {
			return nil, fmt.Errorf("%w: chunk %d of %d is out of bounds", errCutPack, i, n)
		}
	}
	if off != end {
		return nil, fmt.Errorf("%w: %d bytes belong to no chunk", errCutPack, end-off)
	}
	return entries, nil
}
