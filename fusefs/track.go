package fusefs

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"time"
)

// TrackMode says whether the mount follows what processes write between their checkpoints.
type TrackMode string

// The modes. Auto is on for a process that is checkpointed again within autoWithin, until it has not been for
// autoIdle.
const (
	TrackAuto TrackMode = "auto"
	TrackOn   TrackMode = "on"
	TrackOff  TrackMode = "off"
)

const (
	autoWithin  = 10 * time.Minute
	autoIdle    = 30 * time.Minute
	mostTracked = 64 // trees at a time; the one that was checkpointed longest ago goes
)

// Valid reports whether it is one of the modes.
func (m TrackMode) Valid() bool { return m == TrackAuto || m == TrackOn || m == TrackOff }

// following is what the mount does about one tree.
type following struct {
	mode    TrackMode // what was written for it; "": as the mount
	tracker Tracker   // nil: none
	last    time.Time // when it was checkpointed last
}

// trackers are those of a mount. A Tracker is made, used and closed with filesystem.taking locked; mu is for
// who only asks.
type trackers struct {
	mount     TrackMode
	mu        sync.Mutex
	byProcess map[procID]*following
}

// trackState is what ckpt/PID/info says of it.
type trackState struct {
	Mode   TrackMode `json:"mode"`
	Active bool      `json:"active"`
	TrackInfo
}

// modeOf returns the mode of a process. Called with mu held.
func (t *trackers) modeOf(id procID) TrackMode {
	if w := t.byProcess[id]; w != nil && w.mode != "" {
		return w.mode
	}
	return t.mount
}

func (t *trackers) state(id procID) trackState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := trackState{Mode: t.modeOf(id)}
	if w := t.byProcess[id]; w != nil && w.tracker != nil {
		s.Active, s.TrackInfo = true, w.tracker.Info()
	}
	return s
}

// forTake returns the Tracker for a checkpoint of a tree, or nil.
func (t *trackers) forTake(id procID, make func() Tracker) Tracker {
	t.mu.Lock()
	defer t.mu.Unlock()
	mode, now := t.modeOf(id), time.Now()
	w := t.byProcess[id]
	if w == nil {
		w = &following{}
		t.byProcess[id] = w
	}
	wanted := mode == TrackOn || mode == TrackAuto && (w.tracker != nil || now.Sub(w.last) < autoWithin)
	w.last = now
	if wanted && w.tracker == nil {
		t.makeRoom()
		w.tracker = make()
	}
	return w.tracker
}

// makeRoom ends the tracking of the tree that was checkpointed longest ago, if there are many. Called with mu held.
func (t *trackers) makeRoom() {
	var oldest *following
	n := 0
	for _, w := range t.byProcess {
		if w.tracker == nil {
			continue
		}
		if n++; oldest == nil || w.last.Before(oldest.last) {
			oldest = w
		}
	}
	if n >= mostTracked {
		oldest.stop()
	}
}

// stop ends the tracking of a tree.
func (w *following) stop() {
	if w.tracker != nil {
		_ = w.tracker.Close() // there is nobody to tell, and nothing to do about it
		w.tracker = nil
	}
}

// sweep ends the tracking of trees that have ended, or are not checkpointed any more. all: of all.
func (t *trackers) sweep(all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, w := range t.byProcess {
		p, err := readProcess(id.pid)
		ended := err != nil || p.start != id.start
		idle := time.Since(w.last)
		if all || ended || t.modeOf(id) != TrackOn && idle > autoIdle {
			w.stop()
		}
		if ended || w.tracker == nil && w.mode == "" && idle > autoWithin {
			delete(t.byProcess, id)
		}
	}
}

// sweepEvery is how often sweep is called while the filesystem is mounted.
const sweepEvery = 20 * time.Second

// sweepTrackers runs until the filesystem ends.
func (f *filesystem) sweepTrackers() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			return
		}
		if f.lockTaking(f.ctx) == nil {
			f.trackers.sweep(false)
			f.unlockTaking()
		}
	}
}

// setTrack does what was written to ckpt/PID/track.
func (f *filesystem) setTrack(ctx context.Context, id procID, word string) error {
	mode := TrackMode(word)
	if !mode.Valid() {
		return failf(syscall.EINVAL, "track takes auto, on or off, not %q", word)
	}
	if err := f.lockTaking(ctx); err != nil {
		return err
	}
	defer f.unlockTaking()
	t := &f.trackers
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.byProcess[id]
	if w == nil {
		w = &following{}
		t.byProcess[id] = w
	}
	w.mode = mode
	if mode == TrackOff {
		w.stop()
	}
	return nil
}

// trackNode is ckpt/PID/track.
func (f *filesystem) trackNode(p *process) *wordNode {
	id := procID{p.pid, p.start}
	return f.wordNode(p, "track", func() string {
		f.trackers.mu.Lock()
		defer f.trackers.mu.Unlock()
		return string(f.trackers.modeOf(id)) + "\n"
	}, func(ctx context.Context, text string) error { return f.setTrack(ctx, id, strings.TrimSpace(text)) })
}
