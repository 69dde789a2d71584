package store

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestSkewedBytes compresses bytes in which nothing comes twice, but which are only some of all
// that there are.
func TestSkewedBytes(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault} {
		c, err := newCompressor(level)
		if err != nil {
			t.Fatal(err)
		}
		for bits, most := range map[int]int{4: 9, 6: 13, 8: 16} { // sixteenths
			chunk := make([]byte, 16<<10)
			for i := range chunk {
				chunk[i] = byte(rnd.IntN(1 << bits))
			}
			stored, codec := c.append(nil, chunk)
			if len(stored) > len(chunk)/16*most || (codec == codecRaw) != (bits == 8) {
				t.Errorf("level %v: %d bits: %d bytes with codec %d", level, bits, len(stored), codec)
			}
			got := make([]byte, len(chunk))
			if err := s.dec.decode(got, stored, codec, hashOf(chunk)); err != nil || !bytes.Equal(got, chunk) {
				t.Errorf("level %v: %d bits: decoded: %v", level, bits, err)
			}
		}
	}
}
