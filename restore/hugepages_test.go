package restore

import (
	"errors"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

const hugeMiB2 = 2 << 20

// TestHugeNeeds: content and reservations count, each page of shared memory once.
func TestHugeNeeds(t *testing.T) {
	const flag = unix.MAP_HUGETLB | 21<<unix.MAP_HUGE_SHIFT
	vma := func(start, pages uint64, kind image.VMAKind, flags uint32, off uint64) image.VMA {
		v := image.VMA{Start: start * hugeMiB2, End: (start + pages) * hugeMiB2, Kind: kind, Flags: flags | flag, Offset: off * hugeMiB2}
		if kind == image.VMASegment {
			v.Segment = 1
		}
		return v
	}
	page := func(n uint64) image.Extent { return image.Extent{Start: n * hugeMiB2, Len: hugeMiB2} }
	seg := image.Segment{Size: 10 * hugeMiB2, Huge: 21, Extents: []image.Extent{page(0), page(4)}}
	noreserve := vma(100, 5, image.VMAAnon, unix.MAP_PRIVATE|unix.MAP_NORESERVE, 0)
	noreserve.Extents = []image.Extent{page(101), page(103)}
	small := image.VMA{Start: 1 << 40, End: 1<<40 + 4096, Kind: image.VMAAnon, Flags: unix.MAP_PRIVATE}
	for _, c := range []struct {
		what string
		segs []image.Segment
		vmas []image.VMA
		want uint64
	}{
		{"none", nil, []image.VMA{small}, 0},
		{"private", nil, []image.VMA{vma(1, 3, image.VMAAnon, unix.MAP_PRIVATE, 0)}, 3},
		{"private, not reserved", nil, []image.VMA{noreserve}, 2},
		{"a memfd that is only open", []image.Segment{seg}, nil, 2},
		{"two mappings, one page of content between them", []image.Segment{seg},
			[]image.VMA{vma(1, 3, image.VMASegment, unix.MAP_SHARED, 3), vma(9, 2, image.VMASegment, unix.MAP_SHARED, 5)}, 5},
		{"shared, not reserved", []image.Segment{seg}, []image.VMA{vma(1, 9, image.VMASegment, unix.MAP_SHARED|unix.MAP_NORESERVE, 0)}, 2},
		{"private mapping of a memfd", []image.Segment{seg}, []image.VMA{vma(1, 2, image.VMASegment, unix.MAP_PRIVATE, 0)}, 4},
	} {
		m := &image.Manifest{MMs: []image.MM{{VMAs: c.vmas}}, Segments: c.segs}
		if got := hugeNeeds(m, nil)[21]; got != c.want {
			t.Errorf("%s: %d huge pages, want %d", c.what, got, c.want)
		}
	}
}

// TestHugePagesMissing: what is missing is told before anything is done, with how to get it.
func TestHugePagesMissing(t *testing.T) {
	for _, c := range []struct {
		shift uint32
		size  int64
		words []string
	}{
		{21, 1 << 60, []string{"549755813888 huge pages of 2048 KiB", "are free", "echo 549755", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"}},
		{20, 1 << 20, []string{"1 huge pages of 1024 KiB", "this kernel does not have"}},
	} {
		m := &image.Manifest{Segments: []image.Segment{{Size: c.size, Huge: c.shift, Extents: []image.Extent{{Len: uint64(c.size)}}}}}
		err := checkHugePages(m)
		var host *HostError
		if !errors.As(err, &host) {
			t.Fatalf("shift %d: %v", c.shift, err)
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is not in %q", w, err)
			}
		}
	}
	if p := (hugePool{total: 5, unused: 3, reserved: 1, overcommit: 4, surplus: 1}); p.free() != 5 {
		t.Errorf("%+v: %d are free, want 5", p, p.free())
	}
}
