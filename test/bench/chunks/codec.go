package main

import (
	"fmt"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"
)

// How a frame is stored.
const (
	storedRaw = iota
	storedFast
	storedZstd
)

// codec is one way to store a frame, a few functions that belong to one goroutine.
type codec interface {
	// encode appends what to store for raw to dst. If it saves less than 1/16 that is raw itself.
	encode(dst, raw []byte) (out []byte, how uint8)
}

// codecKind names a codec and makes it.
type codecKind struct {
	name  string
	fast  func(dst, raw []byte) []byte // s2 or MinLZ; nil: zstd
	level zstd.EncoderLevel
	probe probe
	dict  []byte
}

var (
	codecNone    = codecKind{name: "none", fast: func(_, raw []byte) []byte { return raw }}
	codecS2      = codecKind{name: "s2", fast: s2.Encode}
	codecMinLZ   = codecKind{name: "minlz", fast: func(dst, raw []byte) []byte { return minLZ(dst, raw, minlz.LevelFastest) }}
	codecSuper   = codecKind{name: "minlz superfast", fast: func(dst, raw []byte) []byte { return minLZ(dst, raw, minlz.LevelSuperFast) }}
	codecBetter  = codecKind{name: "s2 better", fast: s2.EncodeBetter}
	codecZstd    = codecKind{name: "zstd", level: zstd.SpeedFastest}
	codecDefault = codecKind{name: "zstd default", level: zstd.SpeedDefault}
	codecProbe   = codecKind{name: "mix s2", level: zstd.SpeedFastest, probe: probeS2}
	codecEntropy = codecKind{name: "mix entropy", level: zstd.SpeedFastest, probe: probeEntropy}
)

// same tells whether two codecs are the same.
func (k *codecKind) same(o *codecKind) bool { return k.name == o.name }

func (k *codecKind) make() (codec, error) {
	if k.fast != nil {
		return fastCodec{k.fast}, nil
	}
	o := []zstd.EOption{zstd.WithEncoderLevel(k.level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(1 << 20), zstd.WithLowerEncoderMem(true)}
	if k.dict != nil {
		o = append(o, zstd.WithEncoderDict(k.dict))
	}
	enc, err := zstd.NewWriter(nil, o...)
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &zstdCodec{enc: enc, probe: k.probe}, nil
}

// worth says whether n bytes are little enough to store instead of raw ones.
func worth(n, raw int) bool { return n <= raw-raw/16 }

// minLZ is s2.Encode for MinLZ, whose decoder takes s2 as well. A level that exists never fails.
func minLZ(dst, raw []byte, level int) []byte {
	out, err := minlz.Encode(dst, raw, level)
	if err != nil {
		panic(err)
	}
	return out
}

type fastCodec struct{ compress func(dst, src []byte) []byte }

func (c fastCodec) encode(dst, raw []byte) ([]byte, uint8) {
	begin, most := len(dst), max(s2.MaxEncodedLen(len(raw)), minlz.MaxEncodedLen(len(raw)))
	if cap(dst)-begin < most {
		dst = append(dst, make([]byte, most)...)[:begin]
	}
	out := c.compress(dst[begin:begin+most], raw)
	if !worth(len(out), len(raw)) {
		return append(dst, raw...), storedRaw
	}
	return dst[:begin+len(out)], storedFast
}

// probe is a cheap test whether a frame is worth the work of zstd.
type probe func(raw, scratch []byte) (bool, []byte)

type zstdCodec struct {
	enc     *zstd.Encoder
	probe   probe
	scratch []byte
}

func (c *zstdCodec) encode(dst, raw []byte) ([]byte, uint8) {
	if !c.worthTrying(raw) {
		return append(dst, raw...), storedRaw
	}
	out := c.enc.EncodeAll(raw, dst)
	if !worth(len(out)-len(dst), len(raw)) {
		return append(dst, raw...), storedRaw
	}
	return out, storedZstd
}

// worthTrying is what the probe says, if there is one.
func (c *zstdCodec) worthTrying(raw []byte) (ok bool) {
	if c.probe == nil {
		return true
	}
	ok, c.scratch = c.probe(raw, c.scratch)
	return ok
}

// probeS2 has s2 compress an eighth of the frame, 512 bytes of each 4096.
func probeS2(raw, scratch []byte) (bool, []byte) {
	const piece, step = 512, 4096
	scratch = scratch[:0]
	for off := 0; off+piece <= len(raw); off += step {
		scratch = append(scratch, raw[off:off+piece]...)
	}
	n := len(scratch)
	most := s2.MaxEncodedLen(n)
	if cap(scratch) < n+most {
		scratch = append(scratch, make([]byte, most)...)[:n]
	}
	out := s2.Encode(scratch[n:n+most], scratch[:n])
	return len(out) < n-n/32, scratch
}

// probeEntropy looks at how often each byte value occurs in the frame.
func probeEntropy(raw, scratch []byte) (bool, []byte) {
	return compress.Estimate(raw) > 0.03, scratch
}

// decoder turns stored frames back; it belongs to one goroutine.
type decoder struct{ zstd *zstd.Decoder }

func newDecoder(dict []byte) (*decoder, error) {
	o := []zstd.DOption{zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true), zstd.WithDecoderMaxMemory(8 << 20)}
	if dict != nil {
		o = append(o, zstd.WithDecoderDicts(dict))
	}
	d, err := zstd.NewReader(nil, o...)
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &decoder{d}, nil
}

// decode fills dst, which has the length of the frame.
func (d *decoder) decode(dst, stored []byte, how uint8) (err error) {
	out := dst
	switch how {
	case storedRaw:
		out = dst[:copy(dst, stored)]
	case storedFast:
		out, err = minlz.Decode(dst, stored) // s2 as well
	case storedZstd:
		out, err = d.zstd.DecodeAll(stored, dst[:0])
	}
	if err == nil && len(out) != len(dst) {
		err = fmt.Errorf("a frame of %d bytes came back as %d", len(dst), len(out))
	}
	return err
}

// train makes a codec with a dictionary from the first image of every program.
func train(ins []*input, size uint64) (codecKind, error) {
	var samples [][]byte
	program := ""
	for _, in := range ins {
		if in.program == program {
			continue
		}
		program = in.program
		chunks := in.cut(size)
		for i := 0; i < len(chunks); i += max(1, len(chunks)/256) {
			samples = append(samples, chunks[i][:min(len(chunks[i]), 8<<10)])
		}
	}
	b, err := dict.BuildZstdDict(samples, dict.Options{MaxDictSize: 64 << 10, HashBytes: 6, ZstdDictID: 1, ZstdLevel: zstd.SpeedFastest})
	if err != nil {
		return codecKind{}, fmt.Errorf("dictionary for %d KiB: %w", size>>10, err)
	}
	return codecKind{name: "zstd dict", level: zstd.SpeedFastest, dict: b}, nil
}
