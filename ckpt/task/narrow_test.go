package task

import (
	"encoding/binary"
	"os"
	"testing"
)

// TestNarrow tells the auxiliary vectors of 32-bit programs from those of 64-bit ones. /proc ends them
// at a pair of 8 bytes that is zero, wherever that falls.
func TestNarrow(t *testing.T) {
	own, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		t.Fatal(err)
	}
	pairs := func(words ...uint32) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
		return b
	}
	for _, c := range []struct {
		name string
		auxv []byte
		want bool
	}{
		{"ours", own, false},
		{"emptied", make([]byte, 16), false},
		{"nothing", nil, false},
		{"32-bit", pairs(32, 0xf7f0a000, 16, 0xfff, 6, 4096, 17, 100, 0, 0, 0, 0), true},
		{"32-bit, odd place", pairs(32, 0xf7f0a000, 6, 4096, 17, 100, 3, 0x8048034, 0, 0, 0, 0), true},
	} {
		if got := narrow(c.auxv); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
