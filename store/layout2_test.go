package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptfs/ckptfs/store/layout"

	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/klauspost/compress/s2"
)

// asLayout2 turns a closed store, without a key, into what layout 2 would have been.
func asLayout2(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, layout.Packs, "*"+disk.PackExt))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	d, err := codec.NewDecoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		old, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := pack.Read(nil, bytes.NewReader(old), int64(len(old)))
		if err != nil {
			t.Fatal(err)
		}
		head := pack.Head(nil, info.ID, info.Created)
		out := bytes.Clone(head)
		for i := range info.Entries {
			e := &info.Entries[i]
			if e.Codec == codec.Fast {
				raw := make([]byte, e.Raw)
				if err := d.Decode(raw, old[e.Off:][:e.Stored], e.Codec, e.Hash); err != nil {
					t.Fatal(err)
				}
				n, last := len(out), len(raw)-1
				out, e.Codec = append(append(out, s2.Encode(nil, raw[:last])...), raw[last]), codec.S2
				e.Stored = uint32(len(out) - n)
				continue
			}
			out = append(out, old[e.Off:][:e.Stored]...)
		}
		if err := os.WriteFile(name, append(out, pack.Footer(nil, info.ID, head, info.Entries)...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	version := filepath.Join(dir, layout.VersionName)
	b, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("\n"))
	if err := os.WriteFile(version, append([]byte(layout.VersionPrefix+"2\n"), rest...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, layout.Index)); err != nil {
		t.Fatal(err)
	}
}

// TestLayout2 reads, adds to and settles a store that an older program left.
func TestLayout2(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{PackSize: 1 << 20})
	a, b := testImage(1, 200), testImage(2, 100)
	ingest(t, s, "a", a)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	asLayout2(t, dir)
	s = open(t, dir, Options{PackSize: 1 << 20})
	if n := codecs(t, s); n[codec.S2] == 0 || n[codec.Fast] != 0 {
		t.Fatalf("chunks by codec: %v", n)
	}
	wantImage(t, s, "a", a)
	ingest(t, s, "b", b)
	settle(t, s)
	if n := codecs(t, s); n[codec.S2] != 0 || n[codec.Fast] != 0 {
		t.Errorf("chunks by codec: %v", n)
	}
	wantImage(t, s, "a", a)
	wantImage(t, s, "b", b)
	wantClean(t, s)
	if v, err := os.ReadFile(filepath.Join(dir, layout.VersionName)); err != nil || !bytes.HasPrefix(v, []byte(layout.VersionPrefix+"3\n")) {
		t.Errorf("version %q, %v", v, err)
	}
}
