// Package codec stores chunks smaller than they are, and makes sure on the way back that they are
// what they were. What is stored says nothing of its codec or length: packs do.
package codec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"
)

// How a chunk is stored. The numbers are part of the format and never reused.
const (
	Raw  = 0 // as it is: compression did not pay
	Zstd = 1 // one zstd frame without checksum; the chunk's hash is the checksum
	S2   = 2 // an s2 block of all but the last byte, and that byte: what Fast was in layout 2
	Fast = 3 // a MinLZ block: far faster to make, and larger; see Settle
)

// Compressor belongs to one goroutine.
type Compressor struct {
	enc *zstd.Encoder
}

// NewCompressor makes one that compresses with zstd.
func NewCompressor(level zstd.EncoderLevel) (*Compressor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(chunk.MaxLen), zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true)) // text in base64 or hex, say, in which nothing comes twice
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &Compressor{enc}, nil
}

// Append appends to dst what to store for raw. What saves less than 1/16 is stored as it is: it
// would cost every reader time.
func (c *Compressor) Append(dst, raw []byte) (out []byte, codec uint8) {
	return worthwhile(dst, raw, c.enc.EncodeAll(raw, dst), Zstd)
}

// FastCompressor is a Compressor for who has no time. It belongs to one goroutine; the zero value is ready.
type FastCompressor struct {
	misses, since int // chunks in a row in which the fastest level found little, and how many were not shown to it
}

const (
	// littleFound is how many eighths of a chunk are left where another level is tried.
	littleFound = 5
	// fastMisses is after how many chunks in a row with little found only each fastAgain-th is shown to the fastest
	// level: what memory looks like stays the same for a while.
	fastMisses = 8
	fastAgain  = 16
)

// Append is Compressor.Append. Where the fastest level finds little, the next one, which also looks for matches of four
// bytes, often finds more: in arrays of small numbers, say.
func (f *FastCompressor) Append(dst, raw []byte) (out []byte, codec uint8) {
	n := len(dst)
	dst = slices.Grow(dst, minlz.MaxEncodedLen(len(raw)))
	levels := []int{minlz.LevelSuperFast, minlz.LevelFastest}
	if f.misses >= fastMisses {
		if f.since++; f.since < fastAgain {
			levels = levels[1:]
		}
	}
	var block []byte
	var err error
	for _, level := range levels {
		if block, err = minlz.Encode(dst[n:cap(dst)], raw, level); err != nil { // there: it has room for the worst
			return append(dst, raw...), Raw // never: MaxChunk is far below what it takes
		}
		little := len(block) > len(raw)/8*littleFound
		if level == minlz.LevelSuperFast {
			f.since = 0
			if f.misses++; !little {
				f.misses = 0
			}
		}
		if !little {
			break
		}
	}
	return worthwhile(dst, raw, dst[:n+len(block)], Fast)
}

// Provisional reports whether a chunk was stored in no time, and waits for Settle if it is not raw.
func Provisional(codec uint8) bool { return codec == S2 || codec == Fast }

// worthwhile takes back what was appended to dst if it does not pay.
func worthwhile(dst, raw, out []byte, codec uint8) ([]byte, uint8) {
	if len(out)-len(dst) > len(raw)-len(raw)/16 {
		return append(dst, raw...), Raw
	}
	return out, codec
}

var ErrMismatch = errors.New("the bytes do not match the hash")

// Decoder turns stored bytes back into chunks; for any number of goroutines.
type Decoder struct {
	dec *zstd.Decoder
	sec *secret.Secrets
}

// NewDecoder makes one for a store with these secrets; Close ends it.
func NewDecoder(sec *secret.Secrets) (*Decoder, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*chunk.MaxLen),
		zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &Decoder{dec, sec}, nil
}

// Room is how many bytes of capacity behind a chunk, which it may overwrite, make the zstd
// decoder faster, by a sixth: it then copies 16 bytes at a time to the very end.
const Room = 16

// Decode fills dst, which has the chunk's exact length, and checks it against its id h. It may
// overwrite Room bytes of dst's capacity beyond that. stored is no longer sealed.
func (d *Decoder) Decode(dst, stored []byte, codec uint8, h chunk.Hash) error {
	switch codec {
	case Raw:
		if len(stored) != len(dst) {
			return fmt.Errorf("%d bytes stored, %d wanted", len(stored), len(dst))
		}
		copy(dst, stored)
	case Zstd:
		out, err := d.dec.DecodeAll(stored, dst[:0:min(cap(dst), len(dst)+Room)])
		if err != nil {
			return err
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%d bytes, %d wanted", len(out), len(dst))
		}
	case S2:
		if err := decodeS2(dst, stored); err != nil {
			return err
		}
	case Fast:
		if err := decodeFast(dst, stored); err != nil {
			return err
		}
	default:
		return fmt.Errorf("codec %d is not known", codec)
	}
	if d.sec.IDOf(dst) != h {
		return ErrMismatch
	}
	return nil
}

// decodeFast is the way back from AppendFast.
func decodeFast(dst, stored []byte) error {
	// Compared first: for a length that does not fit, it would allocate whatever is claimed.
	if n, err := minlz.DecodedLen(stored); err != nil || n != len(dst) {
		return fmt.Errorf("%d bytes, %d wanted (%w)", n, len(dst), cmp.Or(err, ErrMismatch))
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
		return fmt.Errorf("%d bytes, %d wanted (%w)", got+1, len(dst), cmp.Or(err, ErrMismatch))
	}
	if _, err := s2.Decode(dst[:n:n], stored[:m]); err != nil {
		return err
	}
	dst[n] = stored[m]
	return nil
}

// Close ends the goroutines of the decoder.
func (d *Decoder) Close() { d.dec.Close() }
