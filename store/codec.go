package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"
)

// How a chunk is stored. The numbers are part of the format and never reused.
const (
	codecRaw  = 0 // as it is: compression did not pay
	codecZstd = 1 // one zstd frame without checksum; the chunk's hash is the checksum
	codecS2   = 2 // an s2 block of all but the last byte, and that byte: what codecFast was in layout 2
	codecFast = 3 // a MinLZ block: far faster to make, and larger; see Settle
)

// compressor belongs to one goroutine.
type compressor struct {
	enc     *zstd.Encoder
	batches [2]*batch // of chunks and of nodes, see encoders
}

func newCompressor(level zstd.EncoderLevel) (*compressor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxChunk), zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true)) // text in base64 or hex, say, in which nothing comes twice
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &compressor{enc: enc}, nil
}

// append appends to dst what to store for raw. What saves less than 1/16 is stored as it is: it
// would cost every reader time.
func (c *compressor) append(dst, raw []byte) (out []byte, codec uint8) {
	return worthwhile(dst, raw, c.enc.EncodeAll(raw, dst), codecZstd)
}

// littleFound is how many eighths of a chunk are left where another level is tried.
const littleFound = 5

// appendFast is append for who has no time. Where the fastest level finds little, the next one,
// which also looks for matches of four bytes, often finds more: in arrays of small numbers, say.
func appendFast(dst, raw []byte) (out []byte, codec uint8) {
	n := len(dst)
	dst = slices.Grow(dst, minlz.MaxEncodedLen(len(raw)))
	var block []byte
	var err error
	for _, level := range []int{minlz.LevelSuperFast, minlz.LevelFastest} {
		if block, err = minlz.Encode(dst[n:cap(dst)], raw, level); err != nil { // there: it has room for the worst
			return append(dst, raw...), codecRaw // never: MaxChunk is far below what it takes
		}
		if len(block) <= len(raw)/8*littleFound {
			break
		}
	}
	return worthwhile(dst, raw, dst[:n+len(block)], codecFast)
}

// provisional reports whether a chunk was stored in no time, and waits for Settle if it is not raw.
func provisional(codec uint8) bool { return codec == codecS2 || codec == codecFast }

// worthwhile takes back what was appended to dst if it does not pay.
func worthwhile(dst, raw, out []byte, codec uint8) ([]byte, uint8) {
	if len(out)-len(dst) > len(raw)-len(raw)/16 {
		return append(dst, raw...), codecRaw
	}
	return out, codec
}

var errMismatch = errors.New("the bytes do not match the hash")

// decoder turns stored bytes back into chunks; for any number of goroutines.
type decoder struct {
	dec *zstd.Decoder
	sec *secrets
}

func newDecoder(sec *secrets) (*decoder, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*MaxChunk),
		zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &decoder{dec, sec}, nil
}

// decodeRoom is how many bytes of capacity behind a chunk, which it may overwrite, make the zstd
// decoder faster, by a sixth: it then copies 16 bytes at a time to the very end.
const decodeRoom = 16

// decode fills dst, which has the chunk's exact length, and checks it against its id h. It may
// overwrite decodeRoom bytes of dst's capacity beyond that. stored is no longer sealed.
func (d *decoder) decode(dst, stored []byte, codec uint8, h Hash) error {
	switch codec {
	case codecRaw:
		if len(stored) != len(dst) {
			return fmt.Errorf("%d bytes stored, %d wanted", len(stored), len(dst))
		}
		copy(dst, stored)
	case codecZstd:
		out, err := d.dec.DecodeAll(stored, dst[:0:min(cap(dst), len(dst)+decodeRoom)])
		if err != nil {
			return err
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%d bytes, %d wanted", len(out), len(dst))
		}
	case codecS2:
		if err := decodeS2(dst, stored); err != nil {
			return err
		}
	case codecFast:
		if err := decodeFast(dst, stored); err != nil {
			return err
		}
	default:
		return fmt.Errorf("codec %d is not known", codec)
	}
	if d.sec.idOf(dst) != h {
		return errMismatch
	}
	return nil
}

// decodeFast is the way back from appendFast.
func decodeFast(dst, stored []byte) error {
	// Compared first: for a length that does not fit, it would allocate whatever is claimed.
	if n, err := minlz.DecodedLen(stored); err != nil || n != len(dst) {
		return fmt.Errorf("%d bytes, %d wanted (%w)", n, len(dst), cmp.Or(err, errMismatch))
	}
	_, err := minlz.Decode(dst[:len(dst):len(dst)], stored)
	return err
}

// decodeS2 decodes what layout 2 stored fast.
func decodeS2(dst, stored []byte) error {
	n, m := len(dst)-1, len(stored)-1
	if n < 0 || m < 0 {
		return fmt.Errorf("%d bytes stored, %d wanted", len(stored), len(dst))
	}
	// Compared first: for a length that does not fit, s2 would allocate whatever is claimed.
	if got, err := s2.DecodedLen(stored[:m]); err != nil || got != n {
		return fmt.Errorf("%d bytes, %d wanted (%w)", got+1, len(dst), cmp.Or(err, errMismatch))
	}
	if _, err := s2.Decode(dst[:n:n], stored[:m]); err != nil {
		return err
	}
	dst[n] = stored[m]
	return nil
}
