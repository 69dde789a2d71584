package ckpt

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// Copying ahead of the freeze ends after so many rounds, or when so little is left.
const (
	aheadRounds = 3
	aheadEnough = 128 << 10
)

// copyAhead copies what was written since the base while the process runs on, and again what is written meanwhile, so that
// little is left for the freeze. If it is too much there will be a snapshot.
func (k *tracking) copyAhead(ctx context.Context, l *looked, ids []int) {
	if k.dirty.bytes() > overlayMax*2/3 {
		k.giveUp()
		return
	}
	if k.overlay == nil {
		var err error
		if k.overlay, err = newOverlay(); err != nil {
			return
		}
	}
	if mayPin(ids) {
		return // it will be copied in the freeze, if it is little enough
	}
	mem, err := os.Open(procPath(l.pid, "mem"))
	if err != nil {
		k.giveUp()
		return
	}
	defer mem.Close()
	for round := 0; round < aheadRounds && k.uncopied.bytes() > aheadEnough && ctx.Err() == nil; round++ {
		unread, err := k.overlay.put(mem, k.uncopied)
		if err != nil || k.advanceAll(l.pid) != nil || mayPin(ids) {
			k.giveUp()
			return
		}
		k.uncopied = k.uncopied.union(unread)
	}
}

// giveUp leaves the written pages to a snapshot.
func (k *tracking) giveUp() {
	k.overlay.free()
	k.overlay = nil
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
	var ranges pageSet // one for each mapping: they may touch
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
		if k.t.wp.register(a.Start, a.End) != nil {
			continue // two that follow the writes to a page take them from each other
		}
		k.t.owned = k.t.owned.add(a.Start, a.End)
		if k.covered.contains(a.Start, a.End) {
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
	if k == nil || k.overlay == nil || !p.allKnown() {
		return false, nil
	}
	sc, err := newScanner(p.pid)
	if err != nil {
		return false, err
	}
	defer sc.close()
	left := k.uncopied.bytes()
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if p.mem.tracked[a.Start] != nil || !a.hasPages() || p.mem.held[a.Start] != nil {
			continue
		}
		es, _, err := sc.pages(a)
		if err != nil {
			return false, err
		}
		left += extentsLen(es)
	}
	if left > frozenMax {
		return false, nil
	}
	unread, err := k.overlay.put(p.remote.Mem(), k.uncopied)
	if err != nil || len(unread) > 0 {
		return false, nil //nolint:nilerr // the snapshot is the other way
	}
	if err := p.copyRest(sc); err != nil {
		return false, err
	}
	for _, a := range p.mem.tracked {
		a.reader = &changedReader{k.overlay, k.old, stored}
	}
	p.mem.copiedOnly = true
	return true, nil
}

// copyRest copies everything that is not tracked, and reads its guard regions.
func (p *proc) copyRest(sc *scanner) error {
	if err := p.copyFrozen(true); err != nil {
		return err
	}
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if p.mem.tracked[a.Start] != nil || p.mem.held[a.Start] != nil {
			continue
		}
		guards, err := sc.guardsOf(a)
		if err != nil {
			return err
		}
		p.mem.held[a.Start] = &held{guards: guards}
	}
	return nil
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
	now, _ := areas(p.pid, smaps)
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		j := sort.Search(len(now), func(j int) bool { return now[j].End > a.Start })
		if j == len(now) || !a.partOf(&now[j]) {
			return fmt.Errorf("pid %d: the mapping at %#x: %w", p.pid, a.Start, errUnsure)
		}
	}
	return nil
}

// partOf reports whether an area may be a part of b, which it has joined meanwhile: nothing else of it has changed.
func (a *area) partOf(b *area) bool {
	m := a.Mapping
	m.Start, m.End = b.Start, b.End
	if m.Ino != 0 {
		m.Offset -= a.Start - b.Start
	}
	return b.Start <= a.Start && a.End <= b.End && m == b.Mapping && slices.Equal(a.Flags, b.Flags)
}
