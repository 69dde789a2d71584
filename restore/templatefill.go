package restore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// What a restore costs that shares memory is the copying of its page tables in fork(2): 24 ms for 1 GiB in pages of 4 KiB
// that lie anywhere, as the kernel counts the users of each, and half of it if they lie in huge folios. So the
// template has those wherever the image has all of a huge page, mapped page by page unless the image had
// huge pages there: to the restored process, and in its smaps, they are pages of 4 KiB. What is not whole is
// filled in pages of 4 KiB, so that not a page more is there than was. Of memory that shall have no huge pages
// (MADV_NOHUGEPAGE) this is as true: the template gives it that advice last.

// fillTemplate maps the areas of a template and fills them.
func (j *job) fillTemplate(ctx context.Context, t *Template) error {
	p := t.proc
	f := &feeder{p: p}
	for i := range t.areas {
		b, err := f.batch()
		if err != nil {
			return err
		}
		v := t.areas[i].v
		v.VMFlags = without(v.VMFlags, "nh")
		mapVMA(b, &v, nil)
	}
	if err := f.flush(); err != nil {
		return err
	}
	whole := make([][]span, len(t.areas)) // what lies in huge folios of our making
	if mayCollapse() {
		for i := range t.areas {
			if v := &t.areas[i].v; !v.THP && v.Prot&unix.PROT_WRITE != 0 {
				whole[i] = wholePages(v)
			}
			if err := collapse(ctx, p, whole[i]); err != nil {
				return err
			}
		}
	}
	for _, inside := range []bool{false, true} {
		if err := j.fillAreas(ctx, t, whole, inside); err != nil {
			return fmt.Errorf("fill its memory: %w", err)
		}
	}
	for i := range t.areas {
		if err := settle(p, &t.areas[i].v, whole[i]); err != nil {
			return err
		}
	}
	return nil
}

func without(flags []string, flag string) []string {
	return slices.DeleteFunc(slices.Clone(flags), func(f string) bool { return f == flag })
}

// mayCollapse reports whether the administrator allows huge pages at all.
func mayCollapse() bool {
	b, err := quickread.File("/sys/kernel/mm/transparent_hugepage/enabled")
	return err == nil && !strings.Contains(string(b), "[never]")
}

// wholePages lists the huge pages of a VMA of which the image has everything, joined.
func wholePages(v *image.VMA) (out []span) {
	for i := 0; i < len(v.Extents); {
		s := span{v.Extents[i].Start, v.Extents[i].Start}
		for ; i < len(v.Extents) && v.Extents[i].Start == s.End; i++ {
			s.End += v.Extents[i].Len
		}
		s.Start = (s.Start + hugePage - 1) &^ (hugePage - 1)
		s.End &^= hugePage - 1
		if s.Start < s.End {
			out = append(out, s)
		}
	}
	return out
}

// collapse gives fresh memory huge pages, with one page touched in each, as they cannot be made of nothing. Where
// the kernel has none it stays as it is.
func collapse(ctx context.Context, p *proc, whole []span) error {
	const (
		populateWrite = 23 // MADV_POPULATE_WRITE of asm-generic/mman-common.h
		collapse      = 25 // MADV_COLLAPSE
		atOnce        = 256
	)
	for _, s := range whole {
		for at := s.Start; at < s.End; at += atOnce * hugePage {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(s.End, at+atOnce*hugePage)
			err := p.batch(func(b *ptrace.Batch) {
				for page := at; page < end; page += hugePage {
					b.Call(unix.SYS_MADVISE, page, pageSize, populateWrite).Ignore()
				}
				b.Call(unix.SYS_MADVISE, at, end-at, collapse).Ignore()
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// fillAreas fills the pages that lie in whole huge pages, or those that do not: pages of 4 KiB by userfaultfd(2), which
// must not be there any more when the others are written.
func (j *job) fillAreas(ctx context.Context, t *Template, whole [][]span, inside bool) error {
	f := &filler{p: t.proc, uffd: -1, src: j.r}
	if !inside {
		f = newFiller(t.proc, j.r)
	}
	defer f.close()
	var lots [][]piece
	for i := range t.areas {
		a := &t.areas[i]
		part, offs := a.v, []int64(nil)
		part.Extents = nil
		for e, ext := range a.v.Extents {
			base := j.r.VMAOffset(a.mm, a.vma, e)
			spans := whole[i]
			if a.v.THP { // as a restore fills it
				spans = []span{{a.v.Start, a.v.End}}
			}
			for _, s := range cutExtent(ext, spans, inside) {
				part.Extents = append(part.Extents, image.Extent{Start: s.Start, Len: s.End - s.Start})
				offs = append(offs, base+int64(s.Start-ext.Start))
			}
		}
		if len(part.Extents) == 0 {
			continue
		}
		area := &area{vma: &part}
		if !inside {
			area.fast = f.register(&part)
		}
		lots = pieces(lots, area, func(e int) int64 { return offs[e] })
	}
	return f.copy(ctx, lots)
}

// cutExtent returns the parts of an extent that lie in one of the spans, which ascend, or outside of all.
func cutExtent(e image.Extent, spans []span, inside bool) (out []span) {
	add := func(start, end uint64) {
		if start < end {
			out = append(out, span{start, end})
		}
	}
	at, end := e.Start, e.Start+e.Len
	for _, s := range spans {
		from, to := max(s.Start, e.Start), min(s.End, end)
		if from >= to {
			continue
		}
		if inside {
			add(from, to)
		} else {
			add(at, from)
		}
		at = to
	}
	if !inside {
		add(at, end)
	}
	return out
}

// settle has huge folios mapped page by page, which changing the protection of a part brings about, and gives the VMA
// what it gets last.
func settle(p *proc, v *image.VMA, whole []span) error {
	f := &feeder{p: p}
	for _, s := range whole {
		for page := s.Start; page < s.End; page += hugePage {
			b, err := f.batch()
			if err != nil {
				return err
			}
			for _, prot := range []uint32{unix.PROT_READ, v.Prot} {
				b.Call(unix.SYS_MPROTECT, page, pageSize, uint64(prot)).Label(fmt.Sprintf("map %#x page by page", page))
			}
		}
	}
	b, err := f.batch()
	if err != nil {
		return err
	}
	protect(b, v)
	if slices.Contains(v.VMFlags, "nh") {
		advise(b, v, unix.MADV_NOHUGEPAGE)
	}
	return f.flush()
}
