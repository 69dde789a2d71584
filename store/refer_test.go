package store

import (
	"bytes"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// TestRefer makes images of chunks that another one has, without their bytes.
func TestRefer(t *testing.T) {
	for name, key := range map[string]*Key{"plain": nil, "encrypted": testKey(t)} {
		t.Run(name, func(t *testing.T) { testRefer(t, open(t, t.TempDir(), Options{Key: key})) })
	}
}

func testRefer(t *testing.T, s *Store) {
	var parts [][]byte
	var hashes []Hash
	var lengths []int
	for i := range 300 {
		p := bytes.Repeat([]byte{byte(i), byte(i >> 8), 1}, 1000+i)
		if i%10 == 0 {
			p = make([]byte, 8192) // zeros are not stored
		}
		parts, hashes, lengths = append(parts, p), append(hashes, chunk.Sum(p)), append(lengths, len(p))
	}
	ingest(t, s, "first", parts)
	base, err := s.OpenImage("first")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	for name, with := range map[string]*Reader{"looked up": nil, "vouched for": base} {
		in := begin(t, s, name)
		if b, err := in.Refer(nil, []Hash{hashes[1], chunk.Sum([]byte("nobody has it"))}, []int{lengths[1], 13}); b != nil || err != nil {
			t.Fatalf("%s: a chunk that is not there: %v, %v", name, b, err)
		}
		for i := 0; i < len(parts); i += 50 {
			b, err := in.Refer(with, hashes[i:i+50], lengths[i:i+50])
			if err == nil {
				err = in.Append(b)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		want := bytes.Join(parts, nil)
		got := make([]byte, len(want))
		if _, err := in.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: who follows it reads something else: %v", name, err)
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
		wantImage(t, s, name, parts)
		if im, err := s.Get(name); err != nil || im.Unique != 0 {
			t.Errorf("%s: it brought %d bytes into the store (%v)", name, im.Unique, err)
		}
	}
	wantClean(t, s)
}
