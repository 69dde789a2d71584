package store

import (
	"bytes"
	"reflect"
	"testing"
)

func FuzzRecord(f *testing.F) {
	rec := &record{Name: "bash-12-20260101T000000Z", Created: 1, Unique: 2, Chunks: 3,
		Data: root{Hash: Hash{1}, Level: 1, Size: 10}, Attach: []sideRec{{Name: "info", Data: root{Hash: Hash{2}, Size: 1}}}}
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
		sum := hashOf(whole)
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

func testPack(n int) []byte {
	head := packHead(nil, fileID{1}, 5)
	b := bytes.Clone(head)
	var ents []entry
	for i := range n {
		ents = append(ents, entry{hash: Hash{byte(i)}, stored: 10, raw: 4096, codec: codecZstd})
		b = append(b, "0123456789"...)
	}
	return append(b, packFooter(nil, fileID{1}, head, ents)...)
}

func FuzzPack(f *testing.F) {
	f.Add(testPack(0), true)
	f.Add(testPack(3), true)
	f.Add(testPack(3)[:100], false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if n := len(b); fix && n >= packHeadLen+packTailLen {
			// Give it a right checksum, so that the fuzzer gets further.
			count := int(b[n-packTailLen]) | int(b[n-packTailLen+1])<<8
			if from := n - packTailLen - count*packEntryLen; from >= packHeadLen {
				sum := footerSum(nil, b[:packHeadLen], b[from:n-packTailLen+24])
				copy(b[n-40:], sum[:])
			}
		}
		info, err := readPack(nil, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, e := range info.entries {
			if int64(e.off)+int64(e.stored) > int64(len(b)) || e.raw == 0 || e.raw > MaxChunk {
				t.Fatalf("%+v is out of bounds", e)
			}
		}
		if !bytes.Equal(packFooter(nil, info.id, b[:packHeadLen], info.entries), b[len(b)-packTailLen-len(info.entries)*packEntryLen:]) {
			t.Fatal("the footer is not what it was decoded from")
		}
	})
}

func FuzzRun(f *testing.F) {
	p := &pack{id: fileID{1}}
	w, err := newRunWriter(f.TempDir(), []*pack{p})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 200 {
		h := Hash{byte(i), 7}
		if err := w.add(&h, &loc{p: p, off: 40, stored: 5, raw: 9}); err != nil {
			f.Fatal(err)
		}
	}
	r, err := w.finish()
	if err != nil {
		f.Fatal(err)
	}
	defer r.f.Close()
	st, err := r.f.Stat()
	if err != nil {
		f.Fatal(err)
	}
	whole := make([]byte, st.Size())
	if _, err := r.f.ReadAt(whole, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		known := func(id fileID, size, created int64) *pack { return &pack{id: id} }
		src := bytes.NewReader(b)
		r, err := readRun(src, int64(len(b)), known)
		if err != nil {
			return
		}
		if len(r.sparse) != r.blocks() || r.data+int64(r.blocks())*runBlock > int64(len(b)) {
			t.Fatalf("%+v is out of bounds", r)
		}
		for i := 0; i+runEntryLen <= len(b); i += runEntryLen {
			if l, err := r.loc(b[i:]); err == nil && (l.p == nil || l.raw > MaxChunk) {
				t.Fatalf("%+v", l)
			}
		}
	})
}

func FuzzNode(f *testing.F) {
	f.Add(encodeLeaf(nil, []chunkRef{{Hash{1}, 4096, false}, {Hash{2}, 65536, true}}), 0)
	f.Add(encodeInner(nil, 1, []span{{Hash{1}, 5}, {Hash{2}, 1 << 40}}), 1)
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
