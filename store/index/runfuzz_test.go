package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// testRun is the file of a run of n chunks whose hashes share their first bytes.
func testRun(t testing.TB, n, shared int) []byte {
	p := &pack.Pack{ID: disk.ID{1}}
	w, err := newRunWriter(t.TempDir(), []*pack.Pack{p}, n)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var h chunk.Hash
		binary.BigEndian.PutUint32(h[shared:], uint32(i)*0x10001)
		if err := w.add(&h, &pack.Loc{P: p, Off: 40, Stored: 5, Raw: 9}); err != nil {
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
		known := func(id disk.ID, size, created int64) *pack.Pack { return &pack.Pack{ID: id} }
		r, err := readRun(bytes.NewReader(b), int64(len(b)), known)
		if err != nil {
			if !errors.Is(err, ErrRun) {
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
		if ok && (l.P == nil || l.Raw == 0 || l.Raw > chunk.MaxLen) {
			t.Fatalf("%+v", l)
		}
		h[20] ^= 0xff
		r.find(&h, &reads) // whatever it says
	}
}
