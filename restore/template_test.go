package restore

import (
	"reflect"
	"slices"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// anon is private anonymous memory with content all over.
func anon(start, length uint64, flags ...string) image.VMA {
	return image.VMA{Start: start, End: start + length, Kind: image.VMAAnon, Prot: unix.PROT_READ | unix.PROT_WRITE, Flags: unix.MAP_PRIVATE,
		VMFlags: flags, Extents: []image.Extent{{Start: start, Len: length}}}
}

// treeOf is a manifest of processes that are each the child of the one before.
func treeOf(mms ...[]image.VMA) *image.Manifest {
	m := &image.Manifest{}
	for i, vmas := range mms {
		m.MMs = append(m.MMs, image.MM{VMAs: vmas})
		m.Tasks = append(m.Tasks, image.Task{PID: int32(100 + i), PPID: int32(99 + i), MM: image.ObjRef(i + 1), SID: 1, PGID: 1, ExitSignal: int32(unix.SIGCHLD)})
	}
	return m
}

func TestPlanAreas(t *testing.T) {
	const at = 0x7f00_0000_0000
	file := anon(at+4<<30, 1<<20)
	file.Kind = image.VMAFilePrivate
	shared := anon(at+5<<30, 1<<20)
	shared.Flags = unix.MAP_SHARED
	stack := anon(at+6<<30, 1<<20)
	stack.Flags |= unix.MAP_GROWSDOWN
	hugetlb := anon(at+7<<30, 2<<20)
	hugetlb.Flags |= unix.MAP_HUGETLB
	bound := anon(at+8<<30, 1<<20)
	bound.MemPolicy = &image.MemPolicy{}
	odd := anon(at+0x1000, 3<<20, "dc", "nh")
	m := treeOf(
		[]image.VMA{anon(0x40_0000, 4096), odd, file, shared, stack, hugetlb, bound, anon(at+9<<30, 1<<20, "lo")},
		[]image.VMA{odd, anon(at+1<<30, 1<<20)},
		[]image.VMA{odd})
	h := hole(1 << 20)
	got := planAreas(m, h)
	if len(got) != 4 {
		t.Fatalf("%d areas: %+v", len(got), got)
	}
	for i, want := range []struct {
		node  int
		start uint64
		moved bool
	}{{1, odd.Start, false}, {2, odd.Start, true}, {2, at + 1<<30, false}, {3, odd.Start, true}} {
		a := got[i]
		if a.node != want.node || a.start != want.start || (a.v.Start != a.start) != want.moved || a.v.Start%hugePage != a.start%hugePage {
			t.Errorf("area %d is %+v, want %+v", i, a, want)
		}
		if a.v.Extents[0].Start != a.v.Start || a.v.Extents[0].Len != a.v.End-a.v.Start {
			t.Errorf("area %d: extents %+v of %#x", i, a.v.Extents, a.v.Start)
		}
		for k, b := range got[:i] {
			if a.v.Start < b.v.End && b.v.Start < a.v.End {
				t.Errorf("areas %d and %d overlap: %#x and %#x", i, k, a.v.Start, b.v.Start)
			}
		}
		if a.v.Start < h.end() && uint64(h) < a.v.End {
			t.Errorf("area %d lies in the stub", i)
		}
		for mm := range m.MMs {
			for _, v := range m.MMs[mm].VMAs {
				if want.moved && a.v.Start < v.End && v.Start < a.v.End {
					t.Errorf("area %d at %#x is where another process has %#x", i, a.v.Start, v.Start)
				}
			}
		}
	}
	if odd.Extents[0].Start != odd.Start {
		t.Error("planning has changed the image")
	}

	m.Tasks[0].State = image.TaskZombie
	for _, a := range planAreas(m, h) {
		if a.node == 1 {
			t.Error("a zombie has memory")
		}
	}
}

func TestPlanAreasMany(t *testing.T) {
	var vmas []image.VMA
	for i := range uint64(mostAreas + 10) {
		vmas = append(vmas, anon(0x7f00_0000_0000+i<<24, worthSharing+i<<12))
	}
	got := planAreas(treeOf(vmas), hole(1<<20))
	if len(got) != mostAreas {
		t.Fatalf("%d areas", len(got))
	}
	for _, a := range got {
		if a.vma < 10 {
			t.Errorf("the small VMA %d is among them", a.vma)
		}
	}
}

func TestLendings(t *testing.T) {
	areas := []templateArea{{node: 1}, {node: 2}, {node: 3}, {node: 3}}
	pl := &plan{steps: []step{{Op: stepClone, Node: 1, From: seed}, {Op: stepClone, Node: 5, From: seed}, {Op: stepSetsid, Node: 1},
		{Op: stepClone, Node: 2, From: 1}, {Op: stepSibling, Node: 3, From: 2}, {Op: stepOrphan, Node: 4, From: 3, Heir: 1}, {Op: stepEnd, Node: 5}}}
	want := map[int][]int{1: {0, 1, 2, 3}, 2: {1, 2, 3}, 3: {2, 3}}
	got := lendings(areas, pl)
	for n := range 6 {
		if !slices.Equal(got[n], want[n]) {
			t.Errorf("node %d is born with %v, want %v", n, got[n], want[n])
		}
	}
}

func TestUnneeded(t *testing.T) {
	h := hole(0x10_0000)
	want := []span{{0, h.insn()}, {h.end(), taskSize}}
	if got := unneeded(h, nil); !reflect.DeepEqual(got, want) {
		t.Errorf("%#x", got)
	}
	want = []span{{0, h.insn()}, {h.end(), 0x50_0000}, {0x70_0000, 0x7000_0000}, {0x7001_0000, taskSize}}
	if got := unneeded(h, []span{{0x7000_0000, 0x7001_0000}, {0x50_0000, 0x60_0000}, {0x60_0000, 0x70_0000}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
}

func TestWholePages(t *testing.T) {
	const h = hugePage
	v := image.VMA{Start: 0, End: 64 * h, Extents: []image.Extent{{Start: h - 4096, Len: 4096}, {Start: h, Len: h}, {Start: 2 * h, Len: h + 4096}, // joined
		{Start: 5*h + 4096, Len: h}, {Start: 10 * h, Len: h - 4096}, {Start: 12*h - 4096, Len: h + 8192}}}
	if got, want := wholePages(&v), []span{{h, 3 * h}, {12 * h, 13 * h}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
}

func TestCutExtent(t *testing.T) {
	spans := []span{{10, 20}, {30, 40}, {50, 60}}
	for _, c := range []struct {
		e               image.Extent
		inside, outside []span
	}{
		{image.Extent{Start: 0, Len: 100}, spans, []span{{0, 10}, {20, 30}, {40, 50}, {60, 100}}},
		{image.Extent{Start: 12, Len: 4}, []span{{12, 16}}, nil},
		{image.Extent{Start: 15, Len: 20}, []span{{15, 20}, {30, 35}}, []span{{20, 30}}},
		{image.Extent{Start: 20, Len: 10}, nil, []span{{20, 30}}},
		{image.Extent{Start: 70, Len: 10}, nil, []span{{70, 80}}},
	} {
		if got := cutExtent(c.e, spans, true); !reflect.DeepEqual(got, c.inside) {
			t.Errorf("%v inside: %v, want %v", c.e, got, c.inside)
		}
		if got := cutExtent(c.e, spans, false); !reflect.DeepEqual(got, c.outside) {
			t.Errorf("%v outside: %v, want %v", c.e, got, c.outside)
		}
	}
}
