package ckpt

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
)

// Copying ahead of the freeze ends after so many rounds, or when so little is left.
const (
	aheadRounds = 3
	aheadEnough = 128 << 10
)

// copyAhead copies what was written since the base while the process runs on, and again what is written meanwhile, so that
// little is left for the freeze. If it is too much there will be a snapshot.
func (k *tracking) copyAhead(ctx context.Context, l *looked, ids []int) error {
	if k.dirty.bytes() > overlayMax*2/3 {
		k.leaveToSnapshot()
		return nil
	}
	if k.overlay == nil {
		var err error
		if k.overlay, err = newOverlay(); err != nil {
			return err
		}
		k.uncopied = k.dirty
	}
	mem, err := os.Open(procPath(l.pid, "mem"))
	if err != nil {
		return err
	}
	defer mem.Close()
	for round := 0; round < aheadRounds && k.uncopied.bytes() > aheadEnough && ctx.Err() == nil; round++ {
		if mayPin(ids) { // since the pages were protected; what is left is copied in the freeze, if it is little enough
			return nil
		}
		unread, err := k.overlay.put(mem, k.uncopied)
		if err != nil {
			k.leaveToSnapshot()
			return nil //nolint:nilerr // it has become too much
		}
		if err := k.advanceAll(l.pid); err != nil {
			return err
		}
		k.uncopied = k.uncopied.union(unread)
	}
	return nil
}

// leaveToSnapshot gives up the copies of written pages.
func (k *tracking) leaveToSnapshot() {
	k.overlay.free()
	k.overlay = nil
}

// forget is for when a look has failed halfway: it has protected pages again that nobody knows of now. So nothing of the
// process is taken from the base.
func (k *tracking) forget() {
	k.leaveToSnapshot()
	k.old, k.covered = nil, nil
}

// advanceAll looks again at everything that is covered. What has been written since is what is not copied.
func (k *tracking) advanceAll(pid int) error {
	k.uncopied = nil
	_, err := k.advance(pid, k.covered, false)
	return err
}

// advancePiece is how much memory is looked at by one goroutine at a time.
const advancePiece = 128 << 20

// advance looks again at ranges that are covered, on all processors, and returns their states.
func (k *tracking) advance(pid int, ranges pageSet, frozen bool) ([]states, error) {
	type piece struct {
		of         int
		start, end uint64
	}
	var pieces []piece
	for i, e := range ranges {
		for at, end := e.Start, e.Start+e.Len; at < end; {
			next := min(at&^(advancePiece-1)+advancePiece, end)
			pieces = append(pieces, piece{i, at, next})
			at = next
		}
	}
	got := make([]states, len(pieces))
	err := scanAll(pid, len(pieces), frozen, func(sc *scanner, i int) (err error) {
		p := pieces[i]
		got[i], err = sc.advance(p.start, p.end, k.pages.within(p.start, p.end))
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]states, len(ranges))
	for i, p := range pieces {
		out[p.of].append(&got[i])
	}
	var pages, written pageSet
	for i := range out {
		pages, written = append(pages, out[i].pages...), append(written, out[i].written...)
	}
	k.pages = k.pages.without(ranges).union(pages.joined())
	written = written.joined()
	k.dirty, k.uncopied = k.dirty.union(written), k.uncopied.union(written)
	return out, nil
}

// trackedArea is a tracked mapping in the freeze.
type trackedArea struct {
	pages, guards pageSet
	reader        pageReader // nil: the snapshot
}

// advanceTracked reads, in the freeze, the state of the tracked mappings. Those that changed since they were last
// looked at are left to the snapshot.
func (p *proc) advanceTracked() error {
	k := p.track
	if k == nil {
		return nil
	}
	p.mem.tracked = map[uint64]*trackedArea{}
	k.t.owned, k.t.fresh = nil, nil
	sc, err := newScanner(p.pid)
	if err != nil {
		return err
	}
	defer sc.close()
	var tracked []*area
	var mine pageSet
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if !trackable(a) {
			continue
		}
		was, err := sc.isTracked(a.Start)
		if err != nil {
			return fmt.Errorf("pid %d: %w", p.pid, err)
		}
		if !was {
			k.t.fresh = k.t.fresh.add(a.Start, a.End)
			continue
		}
		tracked, mine = append(tracked, a), mine.add(a.Start, a.End)
	}
	for _, e := range mine {
		if k.t.wp.register(e.Start, e.Start+e.Len) != nil { // by somebody else: two that follow the writes to a page take them from each other
			mine = mine.without(pageSet{e})
		}
	}
	k.t.owned = mine
	var ranges pageSet // one for each mapping: they may touch
	for _, a := range tracked {
		if mine.contains(a.Start, a.End) && k.covered.contains(a.Start, a.End) {
			ranges = append(ranges, image.Extent{Start: a.Start, Len: a.End - a.Start})
		}
	}
	got, err := k.advance(p.pid, ranges, true)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	for i, e := range ranges {
		p.mem.tracked[e.Start] = &trackedArea{pages: got[i].pages, guards: got[i].guards}
	}
	return nil
}

// trackNew begins to track, at the end of the freeze, what is not tracked yet: then mappings join that did not before.
func (p *proc) trackNew() {
	k := p.track
	if k == nil {
		return
	}
	fresh := k.t.fresh
	k.t.fresh = nil
	for _, e := range fresh {
		if k.t.wp.register(e.Start, e.Start+e.Len) == nil {
			k.t.fresh = k.t.fresh.add(e.Start, e.Start+e.Len)
		}
	}
	k.t.owned = k.t.owned.union(k.t.fresh)
}

// frozenMax is how much of a process is copied while it is still, in bytes, so that it needs no snapshot.
const frozenMax = 4 << 20

// copyChanged copies what was written and is not copied yet, and all memory that is not tracked, if that
// is little: then the process needs no snapshot. It reports whether that is so.
func (p *proc) copyChanged(stored io.ReaderAt) (bool, error) {
	k := p.track
	if k.overlay == nil || !p.allKnown() {
		return false, nil
	}
	rest, size, err := p.untracked()
	if err != nil {
		return false, err
	}
	if k.uncopied.bytes()+size > frozenMax {
		return false, nil
	}
	unread, err := k.overlay.put(p.remote.Mem(), k.uncopied)
	if err != nil || len(unread) > 0 {
		return false, nil //nolint:nilerr // the snapshot is the other way
	}
	for _, u := range rest {
		if err := p.hold(u.area, u.pages, u.guards); err != nil {
			return false, err
		}
	}
	for _, a := range p.mem.tracked {
		a.reader = &changedReader{k.overlay, k.dirty, k.old, stored}
	}
	p.mem.copiedOnly = true
	return true, nil
}

// pagesIn are the pages of an area that an image holds, and its guard regions.
type pagesIn struct {
	area          *area
	pages, guards []image.Extent
}

// untracked lists what is neither tracked nor copied yet, and how much memory it is.
func (p *proc) untracked() (rest []pagesIn, size uint64, err error) {
	sc, err := newScanner(p.pid)
	if err != nil {
		return nil, 0, err
	}
	defer sc.close()
	for i := range p.mem.areas {
		u := pagesIn{area: &p.mem.areas[i]}
		if p.mem.tracked[u.area.Start] != nil || p.mem.held[u.area.Start] != nil {
			continue
		}
		if u.pages, u.guards, err = p.pagesOf(sc, u.area); err != nil {
			return nil, 0, err
		}
		rest, size = append(rest, u), size+extentsLen(u.pages)
	}
	return rest, size, nil
}

// allKnown reports whether the look knows all mappings, with the flags that only smaps tells.
func (p *proc) allKnown() bool {
	for i := range p.mem.areas {
		if p.looked.known(&p.mem.areas[i].Mapping) == nil {
			return false
		}
	}
	return true
}

// confirm makes sure, for a process without snapshot, that the flags of its mappings were in the freeze what the look found:
// they are still the same now.
func (p *proc) confirm() error {
	smaps, err := readSmaps(p.pid)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		j := sort.Search(len(smaps), func(j int) bool { return smaps[j].End > a.Start })
		if j == len(smaps) || !a.partOf(&smaps[j]) {
			return fmt.Errorf("pid %d: the mapping at %#x: %w", p.pid, a.Start, errUnsure)
		}
	}
	return nil
}

// partOf reports whether an area may be a part of s, which it has joined meanwhile: nothing else of it has changed.
func (a *area) partOf(s *procfs.Smap) bool {
	m := a.Mapping
	m.Start, m.End = s.Start, s.End
	if m.Ino != 0 {
		m.Offset -= a.Start - s.Start
	}
	return s.Start <= a.Start && a.End <= s.End && m == s.Mapping && slices.Equal(a.Flags, untrackedFlags(s.Flags))
}
