package restore

import (
	"slices"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func TestPieces(t *testing.T) {
	extents := []image.Extent{{Start: 0x1000, Len: 0x1000}, {Start: 0x1ff000, Len: 0x102000}, {Start: 0x800000, Len: 0x1000}, {Start: 0x900000, Len: 0x300000}}
	small := []image.Extent{{Start: 0x10000000, Len: 0x1000}, {Start: 0x10002000, Len: 0x1000}}
	offset := func(e int) int64 { return int64(extents[e].Start) << 8 }
	first, second := &area{vma: &image.VMA{Extents: extents}}, &area{vma: &image.VMA{Extents: small}}
	lots := pieces(nil, first, offset)
	lots = pieces(lots, second, func(e int) int64 { return int64(e) })
	at, e, inHuge := extents[0].Start, 0, map[uint64]int{}
	for i, lot := range lots {
		size := uint64(0)
		for _, p := range lot {
			if other, ok := inHuge[p.addr/hugePage]; ok && other != i {
				t.Errorf("lots %d and %d write to the huge page of %#x", other, i, p.addr)
			}
			inHuge[p.addr/hugePage] = i
			if size += p.length; p.length > copyLen || p.length == 0 || size > copyLen && p.addr/hugePage != lot[0].addr/hugePage {
				t.Errorf("piece %+v in a lot of %d bytes", p, size)
			}
			if p.area == second {
				continue
			}
			if p.addr != at || p.off != offset(e)+int64(at-extents[e].Start) {
				t.Errorf("piece %+v, want address %#x of extent %d", p, at, e)
			}
			if at += p.length; at == extents[e].Start+extents[e].Len && e+1 < len(extents) {
				e++
				at = extents[e].Start
			}
		}
	}
	if e != 3 || at != 0xc00000 {
		t.Errorf("ended in extent %d at %#x", e, at)
	}
	if last := lots[len(lots)-1]; len(last) < 2 || last[len(last)-1].area != second || last[len(last)-2].area != second {
		t.Errorf("small pieces do not share a lot: %+v", last)
	}
}

// TestTogether joins pieces that lie one after the other in the image.
func TestTogether(t *testing.T) {
	w := &area{vma: &image.VMA{Prot: unix.PROT_WRITE}}
	ro := &area{vma: &image.VMA{Prot: unix.PROT_READ}}
	for i, c := range []struct {
		lot  []piece
		n    int
		size uint64
	}{
		{[]piece{{0, 10, 100, w}}, 1, 10},
		{[]piece{{0, 10, 100, w}, {50, 5, 110, w}, {90, 5, 120, w}}, 2, 15},
		{[]piece{{0, 10, 100, w}, {50, 5, 110, ro}}, 2, 15},
		{[]piece{{0, copyLen, 0, w}, {copyLen, 1, copyLen, w}}, 1, copyLen},
		{slices.Repeat([]piece{{0, 0, 0, w}}, 2000), 1024, 0},
	} {
		if n, size := together(c.lot); n != c.n || size != c.size {
			t.Errorf("%d: %d pieces of %d bytes, want %d of %d", i, n, size, c.n, c.size)
		}
	}
}
