// Package lossyfs is a filesystem in memory that loses power. Only tests use it.
//
// Besides what a program sees it keeps what a disk would hold, with as little promised as
// POSIX promises:
//
//   - What was written to a file, and its length, is durable once the file was synced.
//   - A name that was made, removed or changed is durable once its folder was synced. To
//     sync a file says nothing of its name.
//   - Everything else happened or did not. Modes and times are not looked at.
//
// The power goes at a chosen change of the filesystem; from then on everything fails with
// EIO. After then draws one of the states the disk could be in:
//
//  1. In each folder the changes of names since its last sync happened up to a point, or
//     any subset of them did. A rename is one change.
//  2. Every write since a file's last sync is dropped, kept or torn. A torn one breaks off
//     at a sector, or each of its sectors is new, old, zeros or what some other file left
//     there; but a sector that holds durable bytes is only new or old.
//  3. The length is what the writes left, or that of the end with zeros behind what was
//     written, or something between.
package lossyfs

import (
	"slices"
	"sync"
	"syscall"
)

// sector is what a disk writes as a whole, in bytes.
const sector = 512

// Lies are syncs that a filesystem confirms without doing them.
type Lies struct {
	Files   bool // fsync and fdatasync of files
	Folders bool // fsync of folders
}

// FS is one filesystem, from one power-on to the next cut.
type FS struct {
	lies Lies

	mu      sync.Mutex
	root    *node
	nodes   map[uint64]*node   // by the number the kernel knows them under
	folders map[uint64][]named // open folders, as they were when opened
	last    uint64             // number of a node or an open folder
	plan    Plan
	gone    bool
	cut     chan struct{}
	trace   []string
}

// node is a file or a folder.
type node struct {
	id    uint64
	label string // the last name it got
	mode  uint32 // with the type
	links uint32

	// A file.
	data     []byte // as seen
	durable  []byte
	unsynced []write

	// A folder.
	entries map[string]*node // as seen
	kept    map[string]*node // durable
	pending []rebind
}

// write is a change of a file that was not synced: bytes at an offset, or, if data is nil,
// a new length.
type write struct {
	off  int64
	data []byte
}

// named is a name and what it means; nil means nothing.
type named struct {
	name string
	node *node
}

// rebind is one change of a folder: names that from then on mean something else.
type rebind []named

// New returns an empty filesystem that tells these lies.
func New(lies Lies) *FS {
	fs := &FS{lies: lies, nodes: map[uint64]*node{}, folders: map[uint64][]named{}, plan: Plan{After: -1}, cut: make(chan struct{})}
	fs.root = fs.add(syscall.S_IFDIR | 0o700)
	return fs
}

// Plan says at which change of the filesystem the power goes.
type Plan struct {
	// Counts chooses changes by what Trace says of them, "write 40 at 0 of NAME", "sync NAME",
	// "remove NAME" and so on; nil means all.
	Counts func(change string) bool
	// Skip is how many of those pass, and After how many of any kind come next. The power
	// goes at the one that follows.
	Skip, After int
	// Finish lets that one still happen, though nobody is told.
	Finish bool
}

// CutAt says when the power goes. Without it never.
func (fs *FS) CutAt(p Plan) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.plan = p
}

// due reports whether the power goes at this change.
func (p *Plan) due(change string) bool {
	switch {
	case p.After < 0:
		return false
	case p.Skip > 0:
		if p.Counts == nil || p.Counts(change) {
			p.Skip--
		}
		return false
	}
	p.After--
	return p.After < 0
}

// Cut is closed when the power goes.
func (fs *FS) Cut() <-chan struct{} { return fs.cut }

// Trace tells the last changes before the cut, the newest last.
func (fs *FS) Trace() []string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return slices.Clone(fs.trace)
}

const traceLen = 60

// add makes a node without a name.
func (fs *FS) add(mode uint32) *node {
	fs.last++
	n := &node{id: fs.last, mode: mode}
	if n.isFolder() {
		n.entries, n.kept = map[string]*node{}, map[string]*node{}
	}
	fs.nodes[n.id] = n // for good: an unlinked file may be open, or come back
	return n
}

func (n *node) isFolder() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

// change does one change of the filesystem, unless the power is gone or goes now.
func (fs *FS) change(what string, do func()) error {
	if fs.gone {
		return syscall.EIO
	}
	if fs.plan.due(what) {
		return fs.die(what, do)
	}
	fs.note(what)
	do()
	return nil
}

// die is the cut.
func (fs *FS) die(what string, do func()) error {
	fs.gone = true
	close(fs.cut)
	if fs.plan.Finish {
		do()
		fs.note(what + "; then the power went")
	} else {
		fs.note("the power went before " + what)
	}
	return syscall.EIO
}

func (fs *FS) note(what string) {
	fs.trace = append(fs.trace, what)
	if len(fs.trace) > traceLen {
		fs.trace = slices.Delete(fs.trace, 0, 1)
	}
}

// bind changes names in a folder.
func (n *node) bind(r rebind) {
	for _, b := range r {
		if old := n.entries[b.name]; old != nil {
			old.links--
		}
		if b.node != nil {
			b.node.links++
			b.node.label = b.name
		}
	}
	r.apply(n.entries)
	n.pending = append(n.pending, r)
}

// apply does the change to a table of names.
func (r rebind) apply(m map[string]*node) {
	for _, b := range r {
		if b.node == nil {
			delete(m, b.name)
		} else {
			m[b.name] = b.node
		}
	}
}

// put does a write to the file as seen.
func (n *node) put(w write) {
	n.data = w.apply(n.data)
	n.unsynced = append(n.unsynced, w)
}

// apply does the write to b.
func (w write) apply(b []byte) []byte {
	if w.data == nil {
		return resize(b, w.off)
	}
	if end := w.off + int64(len(w.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[w.off:], w.data)
	return b
}

// resize cuts b or fills it up with zeros.
func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// sync makes a node durable, unless the filesystem lies.
func (fs *FS) sync(n *node) {
	switch {
	case n.isFolder() && !fs.lies.Folders:
		for _, r := range n.pending {
			r.apply(n.kept)
		}
		n.pending = nil
	case !n.isFolder() && !fs.lies.Files:
		n.durable, n.unsynced = slices.Clone(n.data), nil
	}
}
