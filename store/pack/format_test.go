package pack

import (
	"bytes"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
)

func testPack(n int) []byte {
	head := Head(nil, disk.ID{1}, 5)
	b := bytes.Clone(head)
	var ents []Entry
	for i := range n {
		ents = append(ents, Entry{Hash: chunk.Hash{byte(i)}, Stored: 10, Raw: 4096, Codec: codec.Zstd})
		b = append(b, "0123456789"...)
	}
	return append(b, Footer(nil, disk.ID{1}, head, ents)...)
}

func FuzzPack(f *testing.F) {
	f.Add(testPack(0), true)
	f.Add(testPack(3), true)
	f.Add(testPack(3)[:100], false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if n := len(b); fix && n >= HeadLen+TailLen {
			// Give it a right checksum, so that the fuzzer gets further.
			count := int(b[n-TailLen]) | int(b[n-TailLen+1])<<8
			if from := n - TailLen - count*EntryLen; from >= HeadLen {
				sum := footerSum(nil, b[:HeadLen], b[from:n-TailLen+24])
				copy(b[n-40:], sum[:])
			}
		}
		info, err := Read(nil, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, e := range info.Entries {
			if int64(e.Off)+int64(e.Stored) > int64(len(b)) || e.Raw == 0 || e.Raw > chunk.MaxLen {
				t.Fatalf("%+v is out of bounds", e)
			}
		}
		if !bytes.Equal(Footer(nil, info.ID, b[:HeadLen], info.Entries), b[len(b)-TailLen-len(info.Entries)*EntryLen:]) {
			t.Fatal("the footer is not what it was decoded from")
		}
	})
}
