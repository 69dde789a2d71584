package ckpt

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		m    procfs.Mapping
		want image.VMAKind
	}{
		{procfs.Mapping{}, image.VMAAnon},
		{procfs.Mapping{Path: "[heap]"}, image.VMAAnon},
		{procfs.Mapping{Path: "[vdso]"}, image.VMAVDSO},
		{procfs.Mapping{Path: "[vvar_vclock]"}, image.VMAVvar},
		{procfs.Mapping{Path: "/lib/x.so", Ino: 5}, image.VMAFilePrivate},
		{procfs.Mapping{Path: "/tmp/f", Ino: 5, Shared: true}, image.VMAFileShared},
		{procfs.Mapping{Path: "/dev/zero", Ino: 5, Shared: true, Deleted: true}, image.VMASegment},
		{procfs.Mapping{Path: "/dev/zero", Ino: 5}, image.VMAFilePrivate},
		{procfs.Mapping{Path: "/memfd:x", Ino: 5, Deleted: true}, image.VMASegment},
		{procfs.Mapping{Path: "/anon_hugepage", Ino: 5, Deleted: true}, image.VMAAnon},
		{procfs.Mapping{Path: "/anon_hugepage", Ino: 5, Deleted: true, Shared: true}, image.VMASegment},
	} {
		if got := classify(&c.m); got != c.want {
			t.Errorf("classify(%+v) = %d, want %d", c.m, got, c.want)
		}
	}
}

func TestCheckAreaRefuses(t *testing.T) {
	for _, c := range []struct {
		s    procfs.Smap
		want string
	}{
		{procfs.Smap{Flags: []string{"rd", "um"}}, "userfaultfd mapping"},
		{procfs.Smap{Flags: []string{"sl"}}, "sealed mapping"},
		{procfs.Smap{Flags: []string{"io", "pf"}}, "device memory"},
		{procfs.Smap{ProtectionKey: 3}, "protection key"},
		{procfs.Smap{Mapping: procfs.Mapping{Path: "/tmp/gone", Ino: 3, Deleted: true}}, "mapped file /tmp/gone"},
	} {
		c.s.Start, c.s.End = 0x1000, 0x2000
		a := area{Smap: c.s, kind: classify(&c.s.Mapping)}
		f, refused := checkArea(os.Getpid(), &a)
		if !refused || f.Kind != c.want || f.Addr != 0x1000 || f.What == "" || f.Remedy == "" {
			t.Errorf("checkArea(%+v) = %+v, %v; want a refusal of %q at 0x1000", c.s, f, refused, c.want)
		}
	}
}

// TestExtents maps memory here and finds just the pages that were written.
// residentPages returns how many pages of our mapping at start /proc/self/smaps counts.
func residentPages(t *testing.T, start uint64) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), fmt.Sprintf("%x-", start))
	_, after, ok2 := strings.Cut(after, "Rss:")
	var kib uint64
	if _, err := fmt.Sscan(after, &kib); err != nil || !ok || !ok2 {
		t.Fatalf("no Rss of %#x in smaps (%v)", start, err)
	}
	return kib * 1024 / uint64(os.Getpagesize())
}

func TestExtents(t *testing.T) {
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	mem[1*page], mem[2*page], mem[6*page] = 1, 2, 3
	if err := unix.Madvise(mem[3*page:4*page], 102); err != nil { // MADV_GUARD_INSTALL
		t.Fatal(err)
	}
	sum := mem[4*page] // reading maps the shared zero page, which is no data, if the kernel has one
	sc, err := newScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer sc.close()
	base := addrOf(mem)
	a := area{Smap: procfs.Smap{Mapping: procfs.Mapping{Start: base, End: base + uint64(len(mem))}}, kind: image.VMAAnon}
	got, guards, err := sc.pages(&a)
	if err != nil {
		t.Fatal(err)
	}
	want := []image.Extent{{Start: base + uint64(page), Len: 2 * uint64(page)}, {Start: base + 6*uint64(page), Len: uint64(page)}}
	if residentPages(t, base) == 4 { // the zero page is not counted there
		want = slices.Insert(want, 1, image.Extent{Start: base + 4*uint64(page), Len: uint64(page)})
	}
	if !slices.Equal(got, want) || sum != 0 {
		t.Errorf("extents = %x, want %x", got, want)
	}
	if want := []image.Extent{{Start: base + 3*uint64(page), Len: uint64(page)}}; !slices.Equal(guards, want) {
		t.Errorf("guards = %x, want %x", guards, want)
	}
	h, err := newHeld(got)
	if err != nil {
		t.Fatal(err)
	}
	defer h.free()
	self, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if err := h.fill(self); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, page)
	if _, err := h.ReadAt(b, int64(base)+6*int64(page)); err != nil || b[0] != 3 {
		t.Errorf("ReadAt = %v, first byte %d; want 3", err, b[0])
	}
	if _, err := h.ReadAt(b, int64(base)); err == nil {
		t.Error("ReadAt of a page that was not copied succeeded")
	}
}

// TestSegmentIsCapturedOnce adds a memfd with a hole and a short last page.
func TestSegmentIsCapturedOnce(t *testing.T) {
	fd, err := unix.MemfdCreate("seg", unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "seg")
	defer f.Close()
	page := int64(os.Getpagesize())
	for off, s := range map[int64]string{0: "head", 4 * page: "tail"} {
		if _, err := f.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	segs := newSegments()
	defer segs.free()
	ref, err := segs.add(f, inode{1, 2}, "/memfd:seg")
	if err != nil {
		t.Fatal(err)
	}
	seg := segs.list[ref-1]
	if !seg.Memfd || seg.Name != "seg" || seg.Size != 4*page+4 || len(seg.Extents) != 2 {
		t.Errorf("segment = %+v", seg)
	}
	b := make([]byte, page)
	if _, err := segs.copies[0].ReadAt(b, 4*page); err != nil || !bytes.HasPrefix(b, []byte("tail\x00")) {
		t.Errorf("ReadAt = %v, %q", err, b[:8])
	}
}

// TestLocksKnown: what the look found of mlock(2) counts only as long as nothing has changed.
func TestLocksKnown(t *testing.T) {
	a := area{Smap: procfs.Smap{Mapping: procfs.Mapping{Start: 0x1000, End: 0x3000, Read: true}, Flags: []string{"rd", "lo"}}, kind: image.VMAAnon}
	l := &looked{areas: []area{a}}
	l.status.VmLck = 8192
	fresh := a
	fresh.Start, fresh.End = 0x5000, 0x6000
	for _, c := range []struct {
		what   string
		p      proc
		locked uint64
		want   bool
	}{
		{"nothing has changed", proc{looked: l, mem: memory{areas: []area{a}}}, 8192, true},
		{"more is locked", proc{looked: l, mem: memory{areas: []area{a}}}, 12288, false},
		{"a new mapping", proc{looked: l, mem: memory{areas: []area{a, fresh}}}, 8192, false},
		{"a new process", proc{mem: memory{areas: []area{a}}}, 8192, false},
	} {
		if got := c.p.locksKnown(c.locked); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
