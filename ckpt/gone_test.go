package ckpt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// openFile makes a file with content, and returns it open with its magic link.
func openFile(t *testing.T, path, content string) (*os.File, string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

// shown is what a magic link reads.
func shown(t *testing.T, magic string) string {
	t.Helper()
	link, err := os.Readlink(magic)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TestFindMapped: where a file is whose name may be gone.
func TestFindMapped(t *testing.T) {
	for _, c := range []struct {
		what   string
		do     func(dir, path string) error
		path   string // below dir
		was    string
		gone   bool
		refuse string
	}{
		{"in place", func(_, _ string) error { return nil }, "f", "", false, ""},
		{"deleted", func(_, p string) error { return os.Remove(p) }, "f", "", true, ""},
		{"replaced", func(dir, p string) error {
			return errors.Join(os.WriteFile(dir+"/new", []byte("new"), 0o600), os.Rename(dir+"/new", p))
		}, "f", "", true, ""},
		{"another name", func(dir, p string) error { return errors.Join(os.Link(p, dir+"/g"), os.Remove(p)) }, "g", "f", false, ""},
		{"deleted and back", func(dir, p string) error {
			return errors.Join(os.Link(p, dir+"/g"), os.Remove(p), os.Rename(dir+"/g", p))
		}, "f", "", false, ""},
		{"a name elsewhere", func(dir, p string) error {
			return errors.Join(os.Mkdir(dir+"/sub", 0o700), os.Link(p, dir+"/sub/g"), os.Remove(p))
		}, "", "", false, "1 name"},
		{"an attribute", func(dir, p string) error {
			return errors.Join(unix.Setxattr(p, "trusted.x", []byte("x"), 0), os.Remove(p))
		}, "", "", false, "trusted.x"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			_, magic := openFile(t, path, "old")
			if err := c.do(dir, path); err != nil {
				t.Fatal(err)
			}
			w, no := findMapped(magic, shown(t, magic))
			if c.refuse != "" {
				if no == nil || !strings.Contains(no.what, c.refuse) || no.remedy == "" {
					t.Errorf("found %+v, %v; want a refusal that says %q", w, no, c.refuse)
				}
				return
			}
			if no != nil || w.path != filepath.Join(dir, c.path) || w.gone != c.gone || c.was != "" && w.was != filepath.Join(dir, c.was) || c.was == "" && w.was != "" {
				t.Errorf("found %+v, %+v", w, no)
			}
		})
	}
}

// TestGoneContent: a deleted file that is read after the freeze must not change, one that the
// tree can write to is copied.
func TestGoneContent(t *testing.T) {
	for _, written := range []bool{false, true} {
		f, magic := openFile(t, filepath.Join(t.TempDir(), "f"), strings.Repeat("x", 5000))
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		w, no := findMapped(magic, shown(t, magic))
		if no != nil || !w.gone {
			t.Fatalf("%+v, %+v", w, no)
		}
		segs := newSegments()
		defer segs.free()
		ref, err := segs.ofGone(magic, &w)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := segs.ofGone(magic, &w); again != ref || err != nil {
			t.Errorf("the second time it is %d, %v; want %d", again, err, ref)
		}
		if written {
			segs.written[ref] = true
		}
		if err := errors.Join(segs.copyWritten(), segs.finish()); err != nil {
			t.Fatal(err)
		}
		seg := segs.list[ref-1]
		if seg.Path != f.Name() || seg.Size != 5000 || seg.Mode != 0o100600 || extentsLen(seg.Extents) != 8192 {
			t.Errorf("segment = %+v", seg)
		}
		b := make([]byte, 4096)
		if _, err := segs.copies[0].ReadAt(b, 4096); err != nil || string(b[:5000-4096]) != strings.Repeat("x", 5000-4096) || b[5000-4096] != 0 {
			t.Errorf("the last page: %v, %q", err, b)
		}
		if _, err := f.WriteAt([]byte("later"), 6000); err != nil {
			t.Fatal(err)
		}
		_, err = segs.copies[0].ReadAt(b, 0)
		if written && (err != nil || b[0] != 'x') || !written && (err == nil || !strings.Contains(err.Error(), "was written to")) {
			t.Errorf("written %v: read after a change: %v", written, err)
		}
	}
}

// TestJoined: blocks of a file may be smaller than a page.
func TestJoined(t *testing.T) {
	var all []image.Extent
	for _, e := range [][2]uint64{{0, 4096}, {0, 8192}, {8192, 12288}, {20480, 24576}, {20480, 24576}} {
		all = joined(all, e[0], e[1])
	}
	if len(all) != 2 || all[0] != (image.Extent{Start: 0, Len: 12288}) || all[1] != (image.Extent{Start: 20480, Len: 4096}) {
		t.Errorf("%+v", all)
	}
}

// TestSharer: a deleted file that somebody outside the tree maps too is refused if what one writes
// would be seen by the other.
func TestSharer(t *testing.T) {
	key, st := inode{1, 2}, inode{3, 2} // as on btrfs
	gone := &whereabouts{gone: true}
	gone.st.Dev, gone.st.Ino = st.dev, st.ino
	mapped := func(write bool) *area {
		a := &area{kind: image.VMASegment, gone: gone}
		a.Dev, a.Ino, a.Shared, a.Write, a.Flags = key.dev, key.ino, true, write, []string{"rd", "sh"}
		return a
	}
	memfd := mapped(false)
	memfd.gone = nil
	maps := map[inode]int{key: 77}
	reads := map[inode][]holder{st: {{pid: 78, read: true}}}
	writes := map[inode][]holder{st: {{pid: 79, read: true, write: true}}}
	for _, c := range []struct {
		what string
		a    *area
		out  outside
		want int
	}{
		{"nobody", mapped(true), outside{}, 0},
		{"we write, they map", mapped(true), outside{maps: maps}, 77},
		{"we write, they have it open", mapped(true), outside{fds: reads}, 78},
		{"all read", mapped(false), outside{maps: maps, fds: reads}, 0},
		{"we read, they map it for writing", mapped(false), outside{maps: maps, writes: maps}, 77},
		{"we read, they have it open for writing", mapped(false), outside{fds: writes}, 79},
		{"memfd", memfd, outside{maps: maps}, 77},
	} {
		c.out.read, c.out.mapped = true, true
		s := &survey{out: &c.out}
		if got := s.sharer(c.a); got != c.want {
			t.Errorf("%s: pid %d, want %d", c.what, got, c.want)
		}
	}
}
