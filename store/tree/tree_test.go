package tree

import (
	"bytes"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

func FuzzNode(f *testing.F) {
	f.Add(encodeLeaf(nil, []Ref{{chunk.Hash{1}, 4096, false}, {chunk.Hash{2}, 65536, true}}), 0)
	f.Add(encodeInner(nil, 1, []Span{{chunk.Hash{1}, 5}, {chunk.Hash{2}, 1 << 40}}), 1)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		if refs, total, err := DecodeLeaf(b); err == nil {
			if total <= 0 || !bytes.Equal(encodeLeaf(nil, refs), b) {
				t.Fatal("the leaf is not what it was decoded from")
			}
		}
		if spans, total, err := DecodeInner(b, level&31); err == nil {
			if total <= 0 || !bytes.Equal(encodeInner(nil, level&31, spans), b) {
				t.Fatal("the node is not what it was decoded from")
			}
		}
	})
}
