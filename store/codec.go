package store

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// How a chunk is stored. The numbers are part of the format and never reused.
const (
	codecRaw  = 0 // as it is: compression did not pay
	codecZstd = 1 // one zstd frame without checksum; the chunk's hash is the checksum
	codecS2   = 2 // an s2 block of all but the last byte, and that byte: far faster to make, and larger; see Settle
)

// compressor belongs to one goroutine.
type compressor struct {
	enc *zstd.Encoder
	out []byte
	// What a worker has at hand, and where packWriter.appendAll encrypts it.
	chunks  []*job
	nodes   []*job
	entries []entry
	plain   []byte
	sealed  []byte
}

func newCompressor(level zstd.EncoderLevel) (*compressor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxChunk), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &compressor{enc: enc}, nil
}

// encode returns what to store for raw. The result is raw itself or valid until the next
// call. What saves less than 1/16 is stored raw: it would cost every reader time.
func (c *compressor) encode(raw []byte) (stored []byte, codec uint8) {
	c.out = c.enc.EncodeAll(raw, c.out[:0])
	return worthwhile(raw, c.out, codecZstd)
}

// encodeFast is encode for who has no time: with s2. The last byte stays out: from 16 KiB on,
// which is the usual chunk, s2 takes a table of four times the size, which is slower by a tenth
// for blocks that short and finds less.
func (c *compressor) encodeFast(raw []byte) (stored []byte, codec uint8) {
	if n := s2.MaxEncodedLen(len(raw)) + 1; cap(c.out) < n {
		c.out = make([]byte, n)
	}
	last := len(raw) - 1
	out := s2.Encode(c.out[:cap(c.out)], raw[:last])
	return worthwhile(raw, append(out, raw[last]), codecS2)
}

func worthwhile(raw, out []byte, codec uint8) ([]byte, uint8) {
	if len(out) > len(raw)-len(raw)/16 {
		return raw, codecRaw
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

// decode fills dst, which has the chunk's exact length, and checks it against its id h.
// stored is no longer sealed.
func (d *decoder) decode(dst, stored []byte, codec uint8, h Hash) error {
	switch codec {
	case codecRaw:
		if len(stored) != len(dst) {
			return fmt.Errorf("%d bytes stored, %d wanted", len(stored), len(dst))
		}
		copy(dst, stored)
	case codecZstd:
		out, err := d.dec.DecodeAll(stored, dst[:0:len(dst)])
		if err != nil {
			return err
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%d bytes, %d wanted", len(out), len(dst))
		}
	case codecS2:
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

// decodeFast is the way back from encodeFast.
func decodeFast(dst, stored []byte) error {
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
