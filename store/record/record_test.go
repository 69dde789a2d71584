package record

import (
	"reflect"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/tree"
)

func FuzzRecord(f *testing.F) {
	rec := &Record{Name: "bash-12-20260101T000000Z", Created: 1, Unique: 2, Chunks: 3,
		Data: tree.Root{Hash: chunk.Hash{1}, Level: 1, Size: 10}, Attach: []Side{{Name: "info", Data: tree.Root{Hash: chunk.Hash{2}, Size: 1}}}}
	b, err := encodeRecord(rec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[12 : len(b)-32])
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxLen-recMin {
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
