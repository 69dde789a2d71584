package store

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

func FuzzRecord(f *testing.F) {
	rec := &record{Name: "bash-12-20260101T000000Z", Created: 1, Unique: 2, Chunks: 3,
		Data: root{Hash: chunk.Hash{1}, Level: 1, Size: 10}, Attach: []sideRec{{Name: "info", Data: root{Hash: chunk.Hash{2}, Size: 1}}}}
	b, err := encodeRecord(rec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[12 : len(b)-32])
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > maxRecord-recMin {
			return
		}
		whole := append([]byte(recMagic), byte(len(body)), byte(len(body)>>8), byte(len(body)>>16), byte(len(body)>>24))
		whole = append(whole, body...)
		sum := chunk.Sum(whole)
		rec, err := decodeRecord(append(whole, sum[:]...))
		if err != nil {
			return
		}
		again, err := encodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		if rec2, err := decodeRecord(again); err != nil || !reflect.DeepEqual(rec, rec2) {
			t.Fatalf("%+v became %+v: %v", rec, rec2, err)
		}
		decodeRecord(body) // without the frame
	})
}

func FuzzNode(f *testing.F) {
	f.Add(encodeLeaf(nil, []chunkRef{{chunk.Hash{1}, 4096, false}, {chunk.Hash{2}, 65536, true}}), 0)
	f.Add(encodeInner(nil, 1, []span{{chunk.Hash{1}, 5}, {chunk.Hash{2}, 1 << 40}}), 1)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		if refs, total, err := decodeLeaf(b); err == nil {
			if total <= 0 || !bytes.Equal(encodeLeaf(nil, refs), b) {
				t.Fatal("the leaf is not what it was decoded from")
			}
		}
		if spans, total, err := decodeInner(b, level&31); err == nil {
			if total <= 0 || !bytes.Equal(encodeInner(nil, level&31, spans), b) {
				t.Fatal("the node is not what it was decoded from")
			}
		}
	})
}
