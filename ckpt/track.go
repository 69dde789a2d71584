package ckpt

import (
	"sync"
)

// A Tracker follows which private memory of a tree is written between its checkpoints, so that each of them
// reads, hashes and stores only that, and refers to the one before for the rest. If little was
// written the tree need not even be snapshotted: the pages are copied, most of them before it is stopped.
//
// Each process gets a userfaultfd(2), held by us and not by it, that write-protects its memory
// asynchronously: the first write to each page after a checkpoint costs it a microsecond. Whatever is not
// known to be unchanged counts as written: memory that was mapped, moved or remapped since, another
// address space after exec(2), all of a new child. If anything goes wrong, or a checkpoint fails, the
// next one is a full one.
//
// Not seen are writes by devices into memory that was pinned before: so processes with an io_uring are not tracked, and
// where a file may be read into memory directly nothing is copied before the freeze (see direct.go). (What another process
// writes by process_vm_writev(2) is pinned for some microseconds, too; it would have to be protected and copied within them.)
//
// A Tracker is for one checkpoint at a time.
type Tracker struct {
	mu       sync.Mutex
	procs    map[procID]*tracked
	base     *base
	gen      int // counts the checkpoints that were begun
	shy      int // for how many more a snapshot is made in any case
	rest     int // for how many more nothing new is tracked
	closed   bool
	lastSeen TrackInfo
}

// TrackInfo tells of the last checkpoint of a Tracker.
type TrackInfo struct {
	Processes int   `json:"processes"` // that are tracked
	Bytes     int64 `json:"bytes"`     // of the last image
	Unchanged int64 `json:"unchanged"` // how many of them the one before had
	Copied    bool  `json:"copied"`    // what had changed was copied; else there was a snapshot
}

// tracked is a process whose writes are followed.
type tracked struct {
	id    procID
	wp    writeTracking
	owned pageSet // the ranges that were registered when it last stood still
	fresh pageSet // those of them that were registered then
}

// NewTracker returns a Tracker that follows nothing yet: the first checkpoint with it begins. Close it.
func NewTracker() *Tracker { return &Tracker{procs: map[procID]*tracked{}} }

// Info tells of the last checkpoint.
func (t *Tracker) Info() TrackInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.lastSeen
	in.Processes = len(t.procs)
	return in
}

// Close ends the tracking: the processes are as before. A checkpoint that is still being streamed is not disturbed.
func (t *Tracker) Close() error {
	t.mu.Lock()
	procs, b := t.procs, t.base
	t.procs, t.base, t.closed = map[procID]*tracked{}, nil, true
	t.gen++
	t.mu.Unlock()
	b.drop()
	for _, p := range procs {
		p.release()
	}
	return nil
}

// restFor is for how many checkpoints nothing new is tracked after that has failed: it stops the tree each time.
const restFor = 16

// mayArm reports whether to try to track what is not tracked yet.
func (t *Tracker) mayArm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest--
	return t.rest < 0
}

// releasePiece is how much memory is given up at a time: the process cannot map memory for a millisecond.
const releasePiece = 32 << 20

// release ends the tracking of a process, piece by piece as long as that works.
func (p *tracked) release() {
	defer p.wp.close()
	st, err := readStat(p.id.pid)
	if err != nil || st.StartTime != p.id.start {
		return
	}
	maps, err := readMaps(p.id.pid)
	if err != nil {
		return
	}
	for i := range maps {
		m := &maps[i]
		if m.Shared || m.Ino != 0 || m.Path == "[vsyscall]" {
			continue
		}
		for at := m.Start; at < m.End; at += releasePiece {
			if p.wp.Unregister(at, min(releasePiece, m.End-at)) != nil {
				return // there are too many mappings to split one, or the process is gone
			}
		}
	}
}
