package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/ckptfs/ckptfs/test/harness"
	"github.com/fxamacker/cbor/v2"
)

// spoiled is an image whose manifest was changed, and that is whole and valid otherwise.
func spoiled(t *testing.T, whole []byte, spoil func(m *image.Manifest)) []byte {
	t.Helper()
	r, m := imagetest.Open(t, whole), imagetest.Open(t, whole).Manifest
	spoil(m)
	return imagetest.Bytes(t, m, func(reg image.Region, start uint64, b []byte) {
		off := int64(-1)
		switch reg.Kind {
		case image.RegionBlob:
			data, err := r.Blob(reg.Ref)
			if err != nil {
				t.Fatal(err)
			}
			copy(b, data)
			return
		case image.RegionVMA:
			off = offsetOf(r.Manifest.MMs[reg.MM].VMAs[reg.VMA].Extents, start, func(i int) int64 { return r.VMAOffset(int(reg.MM), int(reg.VMA), i) })
		case image.RegionSegment:
			off = offsetOf(r.Manifest.Segments[reg.Ref-1].Extents, start, func(i int) int64 { return r.SegmentOffset(reg.Ref, i) })
		}
		if off < 0 {
			t.Fatalf("%s: nothing at %#x", reg, start)
		}
		if _, err := r.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
	})
}

// offsetOf is where the extent that begins at start stands in the image.
func offsetOf(all []image.Extent, start uint64, at func(i int) int64) int64 {
	for i := range all {
		if all[i].Start == start {
			return at(i)
		}
	}
	return -1
}

// editRecord changes the record of a file, a CBOR map with integers as keys.
func editRecord(t *testing.T, f *image.File, edit func(rec map[uint64]any)) {
	t.Helper()
	rec := map[uint64]any{}
	if err := cbor.Unmarshal(f.Rec, &rec); err != nil {
		t.Fatal(err)
	}
	edit(rec)
	data, err := cbor.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	f.Rec = data
}

// TestHostileFiles restores images that name what the process never had.
func TestHostileFiles(t *testing.T) {
	m := harness.NewMount(t)
	r, path := sample(t, "files")
	whole := read(t, path)
	plain := func(m *image.Manifest) *image.File {
		for i := range m.Files {
			if strings.HasSuffix(m.Files[i].Path, "/plain") {
				return &m.Files[i]
			}
		}
		t.Fatal("there is no file named plain")
		return nil
	}
	dir := filepath.Dir(plain(imagetest.Open(t, whole).Manifest).Path)
	other := harness.TempDir(t)
	write(t, filepath.Join(other, "plain"), make([]byte, 1000))
	link := filepath.Join(dir, "by-another-way")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what  string
		spoil func(m *image.Manifest)
		code  int
		words []string
	}{
		{"a device", func(m *image.Manifest) { plain(m).Path = "/dev/kmsg" }, 1, []string{"/dev/kmsg"}},
		{"a device that is not there", func(m *image.Manifest) { plain(m).Path = "/dev/no-such-device" }, 1, []string{"/dev/no-such-device"}},
		{"a path through a symlink", func(m *image.Manifest) { plain(m).Path = link + "/plain" }, 1, []string{link + "/plain", "leads through a symbolic link"}},
		{"a file that its process may not open", func(m *image.Manifest) {
			plain(m).Path = "/etc/shadow"
			for i := range m.Tasks[0].Threads {
				m.Tasks[0].Threads[i].Creds = image.Creds{UID: [4]uint32{65534, 65534, 65534, 65534}, GID: [4]uint32{65534, 65534, 65534, 65534}}
			}
		}, 1, []string{"/etc/shadow", "was replaced", "may not open the new one itself"}},
		{"a descriptor beyond the limit", func(m *image.Manifest) {
			fds := m.FDTables[0].FDs
			fds[len(fds)-1].Num = 1 << 30
		}, 5, []string{"1073741824"}},
	} {
		refusedWith(t, c.code, m, r, spoiled(t, whole, c.spoil), c.what, c.words...)
	}
	// A file that was replaced is opened unless the policy is strict: programs are restored over rotated logs. A process
	// of root could open this one itself.
	strict := filepath.Join(harness.TempDir(t), "strict")
	write(t, strict, spoiled(t, whole, func(m *image.Manifest) { plain(m).Path = "/etc/shadow" }))
	fails(t, []string{harness.Binary(), "restore", "--policy", "files=strict", strict}, "/etc/shadow", "was replaced")
	if harness.Exists(r.PID) {
		t.Fatalf("pid %d exists after a refused restore", r.PID)
	}
	refused(t, m, r, bytes.Replace(whole, []byte(dir+"/plain"), []byte(dir[:len(dir)-3]+"/../plain"), 1), "a path with .. in it")
	// And nothing of that was because of how the image was changed.
	good := filepath.Join(harness.TempDir(t), "good")
	write(t, good, spoiled(t, whole, func(*image.Manifest) {}))
	r.Restore(good)
	r.Pass(true)
}

// TestHostileSockets restores images of sockets with more than there can be.
func TestHostileSockets(t *testing.T) {
	m := harness.NewMount(t)
	r, path := sample(t, "inet", "connected")
	whole := read(t, path)
	edit := func(has uint64, edit func(rec map[uint64]any)) func(m *image.Manifest) {
		return func(m *image.Manifest) {
			for i := range m.Files {
				if m.Files[i].Kind != "inet" {
					continue
				}
				found := false
				editRecord(t, &m.Files[i], func(rec map[uint64]any) {
					if found = rec[has] != nil; found {
						edit(rec)
					}
				})
				if found {
					return
				}
			}
			t.Fatalf("no socket has %d", has)
		}
	}
	const opts, conn, sendLen, peer = 9, 15, 3, 1
	refused(t, m, r, spoiled(t, whole, edit(opts, func(rec map[uint64]any) {
		rec[opts].([]any)[0].(map[any]any)[uint64(3)] = make([]byte, 1<<20)
	})), "an option of a MiB", "has 1048576 bytes")
	refused(t, m, r, spoiled(t, whole, edit(conn, func(rec map[uint64]any) {
		rec[conn].(map[any]any)[uint64(sendLen)] = uint64(1 << 31)
	})), "more data than may wait", "2147483648")
	refused(t, m, r, spoiled(t, whole, edit(conn, func(rec map[uint64]any) {
		rec[conn].(map[any]any)[uint64(peer)] = make([]byte, 3)
	})), "a connection to nowhere")
}
