package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// TestSkewedBytes compresses bytes in which nothing comes twice, but which are only some of all
// that there are.
func TestSkewedBytes(t *testing.T) {
	d, err := NewDecoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault} {
		c, err := NewCompressor(level)
		if err != nil {
			t.Fatal(err)
		}
		for bits, most := range map[int]int{4: 9, 6: 13, 8: 16} { // sixteenths
			raw := make([]byte, 16<<10)
			for i := range raw {
				raw[i] = byte(rnd.IntN(1 << bits))
			}
			stored, codec := c.Append(nil, raw)
			if len(stored) > len(raw)/16*most || (codec == Raw) != (bits == 8) {
				t.Errorf("level %v: %d bits: %d bytes with codec %d", level, bits, len(stored), codec)
			}
			got := make([]byte, len(raw))
			if err := d.Decode(got, stored, codec, chunk.Sum(raw)); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("level %v: %d bits: decoded: %v", level, bits, err)
			}
		}
	}
}

// appendS2 is what FastCompressor.Append was in layout 2.
func appendS2(dst, raw []byte) ([]byte, uint8) {
	last := len(raw) - 1
	return worthwhile(dst, raw, append(append(dst, s2.Encode(nil, raw[:last])...), raw[last]), S2)
}

func TestCodecs(t *testing.T) {
	c, err := NewCompressor(zstd.SpeedFastest)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDecoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, chunk.MaxLen)
	rand.NewChaCha8([32]byte{1}).Read(random)
	half := append(bytes.Clone(random[:chunk.MaxLen/2]), make([]byte, chunk.MaxLen/2)...)
	for _, raw := range [][]byte{{7}, random[:100], half[chunk.MaxLen/2-50:], half[chunk.MaxLen/2-8192:][:16384], half, random} {
		for codec, encode := range map[uint8]func(dst, raw []byte) ([]byte, uint8){Zstd: c.Append, S2: appendS2, Fast: new(FastCompressor).Append} {
			stored, got := encode(nil, raw)
			pays := len(raw) > 100 && len(raw) != len(random) || len(raw) == len(half) && raw[len(raw)-1] == 0
			if want := map[bool]uint8{true: codec, false: Raw}[pays]; got != want {
				t.Errorf("%d bytes have codec %d, want %d", len(raw), got, want)
			}
			dst := make([]byte, len(raw))
			if err := d.Decode(dst, stored, got, chunk.Sum(raw)); err != nil || !bytes.Equal(dst, raw) {
				t.Errorf("codec %d, %d bytes: %v", got, len(raw), err)
			}
			if err := d.Decode(make([]byte, len(raw)+1), stored, got, chunk.Sum(raw)); err == nil {
				t.Errorf("codec %d: a wrong length is not noticed", got)
			}
			if err := d.Decode(dst, stored, got, chunk.Hash{}); !errors.Is(err, ErrMismatch) {
				t.Errorf("codec %d: a wrong hash: %v", got, err)
			}
		}
	}
}

// FuzzDecode decodes what is no raw: it must not write or allocate beyond what was asked for.
func FuzzDecode(f *testing.F) {
	c, err := NewCompressor(zstd.SpeedFastest)
	if err != nil {
		f.Fatal(err)
	}
	raw := bytes.Repeat([]byte("abcdefg"), 1000)
	for codec, encode := range map[uint8]func(dst, raw []byte) ([]byte, uint8){Zstd: c.Append, S2: appendS2, Fast: new(FastCompressor).Append} {
		stored, _ := encode(nil, raw)
		f.Add(bytes.Clone(stored), uint16(len(raw)), codec)
		f.Add(append(binary.AppendUvarint(nil, 1<<32-1), stored[2:]...), uint16(len(raw)), codec)
		f.Add(append(binary.AppendUvarint(nil, uint64(len(raw))), stored[len(stored)/2:]...), uint16(len(raw)), codec)
	}
	d, err := NewDecoder(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, stored []byte, n uint16, codec uint8) {
		before := bytes.Clone(stored)
		for _, room := range []int{0, Room, 64} { // behind the raw
			guarded := bytes.Repeat([]byte{0xa5}, int(n)+64)
			if err := d.Decode(guarded[:n:int(n)+room], stored, codec, chunk.Hash{1}); err == nil {
				t.Fatal("what cannot be decoded, or has another hash, was taken")
			}
			rest := guarded[int(n)+min(room, Room):]
			if !bytes.Equal(rest, bytes.Repeat([]byte{0xa5}, len(rest))) || !bytes.Equal(stored, before) {
				t.Fatal("it wrote where it must not")
			}
		}
	})
}

// TestHostileLength: a block that says it is 4 GiB long costs nothing.
func TestHostileLength(t *testing.T) {
	d, err := NewDecoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	block := append(binary.AppendUvarint(nil, 1<<32-1), make([]byte, 100)...)
	dst := make([]byte, 4096)
	for codec, block := range map[uint8][]byte{S2: block, Fast: block, Fast + 128: append([]byte{0}, block...)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = d.Decode(dst, block, codec&127, chunk.Hash{})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; err == nil || n > 1<<20 {
			t.Errorf("codec %d: %v, %d bytes allocated", codec&127, err, n)
		}
	}
}

// TestFastLearns: whatever was compressed before, a chunk comes back, and one that shrinks does.
func TestFastLearns(t *testing.T) {
	d, err := NewDecoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var f FastCompressor
	random, easy := make([]byte, 16<<10), make([]byte, 16<<10)
	memories["random"](random)
	memories["pointers"](easy)
	for i := range 200 {
		raw, most := random, len(random)
		if i/40%2 == 1 {
			raw, most = easy, len(easy)/2
		}
		stored, how := f.Append(nil, raw)
		if len(stored) > most {
			t.Errorf("chunk %d: %d bytes became %d", i, len(raw), len(stored))
		}
		out := make([]byte, len(raw), len(raw)+Room)
		if err := d.Decode(out, stored, how, chunk.Sum(raw)); err != nil || !bytes.Equal(out, raw) {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
	if f.misses < fastMisses { // the last forty were random
		t.Errorf("%d misses", f.misses)
	}
}
