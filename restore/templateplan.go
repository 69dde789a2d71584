package restore

import (
	"cmp"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

const (
	// worthSharing is how much content makes a VMA worth being shared: each costs some system calls
	// in each process on its way.
	worthSharing = 256 << 10
	// mostAreas bounds those calls: only the largest VMAs are shared.
	mostAreas = 512
)

// templateArea is a VMA whose content a template holds.
type templateArea struct {
	node  int       // of the process it belongs to
	mm    int       // index of its address space
	vma   int       // index there
	start uint64    // where it belongs
	v     image.VMA // as it is in the template: with other addresses, if those are taken there
}

// sharable reports whether fork(2) hands a VMA on just as it is. A lock is not inherited, and locking it would copy each
// page; what may grow down is small; and pages of a NUMA policy lie where the policy of the process wants them.
func sharable(v *image.VMA) bool {
	return v.Kind == image.VMAAnon && v.Flags&unix.MAP_TYPE == unix.MAP_PRIVATE && v.Flags&(unix.MAP_HUGETLB|unix.MAP_GROWSDOWN) == 0 &&
		v.MemPolicy == nil && !slices.Contains(v.VMFlags, "lo") && stored(v) >= worthSharing
}

// planAreas chooses the VMAs that a template has, and where.
func planAreas(m *image.Manifest, h hole) []templateArea {
	var all []templateArea
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.State == image.TaskZombie || t.MM == 0 {
			continue
		}
		mm := int(t.MM - 1)
		for k := range m.MMs[mm].VMAs {
			if v := &m.MMs[mm].VMAs[k]; sharable(v) {
				all = append(all, templateArea{node: i + 1, mm: mm, vma: k, start: v.Start, v: *v})
			}
		}
	}
	if len(all) > mostAreas {
		slices.SortStableFunc(all, func(a, b templateArea) int { return cmp.Compare(stored(&b.v), stored(&a.v)) })
		all = all[:mostAreas]
		slices.SortStableFunc(all, func(a, b templateArea) int { return cmp.Compare(a.node, b.node) })
	}
	return placeAreas(m, h, all)
}

// placeAreas gives each area an address: its own one if no area before it has that, else one that nothing in the whole
// image uses, so that what is to be moved is never in the way of another. Without one the area is not shared.
func placeAreas(m *image.Manifest, h hole, all []templateArea) (placed []templateArea) {
	used := []span{{uint64(h), h.end() + holeGuard}}
	for i := range m.MMs {
		for k := range m.MMs[i].VMAs {
			used = append(used, span{m.MMs[i].VMAs[k].Start, m.MMs[i].VMAs[k].End})
		}
	}
	var taken []span
	for _, a := range all {
		s := span{a.v.Start, a.v.End}
		if slices.ContainsFunc(taken, func(t span) bool { return t.Start < s.End && s.Start < t.End }) {
			at, ok := freeRange(used, holeMin, holeMax, s.End-s.Start+2*hugePage)
			if !ok {
				continue
			}
			at = (at+hugePage-1)&^(hugePage-1) + s.Start%hugePage // whole page tables are moved then
			a.v = moved(&a.v, at)
			s = span{at, a.v.End}
			used = append(used, s)
		}
		taken = append(taken, s)
		placed = append(placed, a)
	}
	return placed
}

// moved is a VMA as it would be at another address.
func moved(v *image.VMA, at uint64) image.VMA {
	w := *v
	w.Start, w.End = at, at+v.End-v.Start
	w.Extents = slices.Clone(v.Extents)
	for i := range w.Extents {
		w.Extents[i].Start += at - v.Start
	}
	return w
}

// lendings says which areas of a template each node of a plan has to be born with, as indexes: its own, and
// those of whom it makes.
func lendings(areas []templateArea, pl *plan) map[int][]int {
	out := map[int][]int{}
	for i := range areas {
		out[areas[i].node] = append(out[areas[i].node], i)
	}
	for _, st := range slices.Backward(pl.steps) { // children are made after their parents
		switch st.Op {
		case stepClone, stepSibling, stepOrphan:
			if st.From != seed {
				out[st.From] = append(out[st.From], out[st.Node]...)
			}
		}
	}
	return out
}

// unneeded is the address space without a stub's memory, but for the page of its code, and without some spans.
func unneeded(h hole, keep []span) (out []span) {
	keep = append([]span{{h.insn(), h.end()}}, keep...)
	slices.SortFunc(keep, func(a, b span) int { return cmp.Compare(a.Start, b.Start) })
	at := uint64(0)
	for _, k := range keep {
		if k.Start > at {
			out = append(out, span{at, k.Start})
		}
		at = max(at, k.End)
	}
	return append(out, span{at, taskSize})
}
