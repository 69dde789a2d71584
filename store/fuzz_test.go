package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"reflect"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
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

func testPack(n int) []byte {
	head := packHead(nil, disk.ID{1}, 5)
	b := bytes.Clone(head)
	var ents []entry
	for i := range n {
		ents = append(ents, entry{hash: chunk.Hash{byte(i)}, stored: 10, raw: 4096, codec: codec.Zstd})
		b = append(b, "0123456789"...)
	}
	return append(b, packFooter(nil, disk.ID{1}, head, ents)...)
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
			if int64(e.off)+int64(e.stored) > int64(len(b)) || e.raw == 0 || e.raw > chunk.MaxLen {
				t.Fatalf("%+v is out of bounds", e)
			}
		}
		if !bytes.Equal(packFooter(nil, info.id, b[:packHeadLen], info.entries), b[len(b)-packTailLen-len(info.entries)*packEntryLen:]) {
			t.Fatal("the footer is not what it was decoded from")
		}
	})
}

// testRun is the file of a run of n chunks whose hashes share their first bytes.
func testRun(t testing.TB, n, shared int) []byte {
	p := &pack{id: disk.ID{1}}
	w, err := newRunWriter(t.TempDir(), []*pack{p}, n)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var h chunk.Hash
		binary.BigEndian.PutUint32(h[shared:], uint32(i)*0x10001)
		if err := w.add(&h, &loc{p: p, off: 40, stored: 5, raw: 9}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.finish()
	if err != nil {
		t.Fatal(err)
	}
	defer r.f.Close()
	b, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bytesFile is a run that a fuzzer made.
type bytesFile struct{ *bytes.Reader }

func (bytesFile) Close() error { return nil }

// fixRun gives a run right checksums, so that the fuzzer gets further.
func fixRun(b []byte) {
	if len(b) < runHeadLen {
		return
	}
	packs, n := int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint64(b[16:]))
	if packs < 0 || packs > 1<<20 || n < 0 || n > 1<<20 {
		return
	}
	blocks := (n + perBlock - 1) / perBlock
	data, tail := alignBlock(runHeadLen+packs*runPackLen), blocks*runTailLen
	if data+blocks*runBlock+tail != int64(len(b)) {
		return
	}
	for i := range blocks {
		block := b[data+i*runBlock:][:runBlock]
		binary.LittleEndian.PutUint32(block[perBlock*runEntryLen:], crc32.Checksum(block[:perBlock*runEntryLen], castagnoli))
	}
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[int64(len(b))-tail:], castagnoli))
	sum := runSum(b, b[runHeadLen:runHeadLen+packs*runPackLen])
	copy(b[32:], sum[:])
}

func FuzzRun(f *testing.F) {
	for _, n := range []int{0, 1, perBlock, 200} {
		f.Add(testRun(f, n, 0), n == 200)
		f.Add(testRun(f, n, 6), n != 200) // keys that follow each other closely
		f.Add(testRun(f, n, 8), true)     // one key for all
	}
	old := testRun(f, 200, 0)
	copy(old, runOldMagic)
	f.Add(old, false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if b = bytes.Clone(b); fix {
			fixRun(b)
		}
		known := func(id disk.ID, size, created int64) *pack { return &pack{id: id} }
		r, err := readRun(bytes.NewReader(b), int64(len(b)), known)
		if err != nil {
			if !errors.Is(err, errRun) {
				t.Fatal(err)
			}
			return
		}
		if len(r.keys) != 8*r.blocks() || r.data+int64(r.blocks())*runBlock > int64(len(b)) {
			t.Fatalf("%+v is out of bounds", r)
		}
		r.f = bytesFile{bytes.NewReader(b)}
		checkRun(t, r, b)
	})
}

// checkRun looks up every hash of a run. None may be missed, unless a walk finds fault.
func checkRun(t *testing.T, r *run, b []byte) {
	var reads atomic.Uint64
	it, whole := r.iter(), true
	for more := true; more && whole; {
		var err error
		if more, err = it.next(); err != nil {
			whole = false
		}
	}
	for i := range r.n {
		at := r.data + int64(i/perBlock)*runBlock + int64(i%perBlock)*runEntryLen
		h := chunk.Hash(b[at:])
		pos, l, ok, err := r.find(&h, &reads)
		if whole && (err != nil || !ok || pos != i) {
			t.Fatalf("entry %d of %d: found %v at %d: %v", i, r.n, ok, pos, err)
		}
		if ok && (l.p == nil || l.raw == 0 || l.raw > chunk.MaxLen) {
			t.Fatalf("%+v", l)
		}
		h[20] ^= 0xff
		r.find(&h, &reads) // whatever it says
	}
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
