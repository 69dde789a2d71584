package codec

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// memories are what processes have in their memory, more or less.
var memories = map[string]func(b []byte){
	"numbers": func(b []byte) { // each other one is random
		r := rand.New(rand.NewPCG(1, 2))
		for i := 0; i < len(b); i += 8 {
			v := uint64(i / 8 % 4096)
			if i%16 == 0 {
				v = r.Uint64()
			}
			binary.LittleEndian.PutUint64(b[i:], v)
		}
	},
	"random": func(b []byte) {
		r := rand.New(rand.NewPCG(3, 4))
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], r.Uint64())
		}
	},
	"pointers": func(b []byte) { // records of 64 bytes: two pointers, a length, zeros
		r := rand.New(rand.NewPCG(5, 6))
		for i := 0; i < len(b); i += 64 {
			binary.LittleEndian.PutUint64(b[i:], 0x7f1200000000+uint64(r.IntN(1<<20))*16)
			binary.LittleEndian.PutUint64(b[i+8:], 0x7f1200000000+uint64(r.IntN(1<<20))*16)
			b[i+16] = byte(r.IntN(100))
		}
	},
}

// BenchmarkFast compresses chunks of memory as a checkpoint does; "stored" is what is left of them.
func BenchmarkFast(b *testing.B) {
	for name, fill := range memories {
		b.Run(name, func(b *testing.B) {
			const chunk = 16 << 10
			mem := make([]byte, 16<<20)
			fill(mem)
			b.SetBytes(int64(len(mem)))
			var f FastCompressor
			var buf []byte
			n := 0
			for b.Loop() {
				n = 0
				for off := 0; off < len(mem); off += chunk {
					buf, _ = f.Append(buf[:0], mem[off:off+chunk])
					n += len(buf)
				}
			}
			b.ReportMetric(float64(n)/float64(len(mem)), "stored")
		})
	}
}
