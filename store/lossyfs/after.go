package lossyfs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// After returns a state in which the disk could be after a cut now, as a filesystem of its
// own where all of it is durable, and says what became of everything that was not synced.
// Equal generators draw equal states.
func (fs *FS) After(rnd *rand.Rand, lies Lies) (*FS, []string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	d := &disk{rnd: rnd, fs: New(lies), made: map[*node]*node{}}
	d.folder(d.fs.root, fs.root, "")
	return d.fs, d.fates
}

// disk is a state being drawn.
type disk struct {
	rnd   *rand.Rand
	fs    *FS
	made  map[*node]*node // files: one with two names stays one
	fates []string
}

func (d *disk) folder(to, from *node, path string) {
	left := d.entries(from, path)
	for _, s := range slices.Sorted(maps.Keys(left)) {
		n := left[s]
		c := d.made[n]
		if c == nil {
			c = d.fs.add(n.mode)
			d.made[n] = c
			if n.isFolder() {
				d.folder(c, n, path+s+"/")
			} else {
				c.data = d.content(n, path+s)
				d.fs.persist(c)
			}
		}
		to.bind(rebind{{s, c}})
	}
	d.fs.persist(to)
}

// persist makes a node durable, lies or not.
func (fs *FS) persist(n *node) {
	lies := fs.lies
	fs.lies = Lies{}
	fs.sync(n)
	fs.lies = lies
}

// entries draws the names of a folder.
func (d *disk) entries(n *node, path string) map[string]*node {
	left := maps.Clone(n.kept)
	if len(n.pending) == 0 {
		return left
	}
	upTo := d.rnd.IntN(len(n.pending) + 1)
	ordered := d.rnd.IntN(2) == 0
	for i, r := range n.pending {
		happened := i < upTo
		if !ordered {
			happened = d.rnd.IntN(2) == 0
		}
		if happened {
			r.apply(left)
		}
		d.fates = append(d.fates, fmt.Sprintf("%s%s: %s", path, r, verdict(happened)))
	}
	return left
}

func verdict(happened bool) string {
	if happened {
		return "happened"
	}
	return "did not happen"
}

// String tells a change of names.
func (r rebind) String() string {
	switch {
	case len(r) == 2:
		return r[0].name + " renamed to " + r[1].name
	case r[0].node == nil:
		return r[0].name + " removed"
	}
	return r[0].name + " made"
}

// content draws the bytes of a file.
func (d *disk) content(n *node, path string) []byte {
	if len(n.unsynced) == 0 {
		return slices.Clone(n.durable)
	}
	var b []byte
	switch d.rnd.IntN(4) {
	case 0:
		b = slices.Clone(n.durable)
	case 1:
		b = slices.Clone(n.data)
	default:
		b = d.length(n, d.writes(n))
	}
	d.fates = append(d.fates, fmt.Sprintf("%s%d of its writes were not synced: %d bytes were, %d were seen, %d are left",
		path+": ", len(n.unsynced), len(n.durable), len(n.data), len(b)))
	return b
}

// writes draws what became of each write.
func (d *disk) writes(n *node) []byte {
	b := slices.Clone(n.durable)
	for _, w := range n.unsynced {
		switch fate := d.rnd.IntN(3); {
		case fate == 0:
		case fate == 1 || w.data == nil:
			b = w.apply(b)
		case d.rnd.IntN(2) == 0:
			b = d.broken(b, w)
		default:
			b = d.scattered(b, w, int64(len(n.durable)))
		}
	}
	return b
}

// broken does a write up to a sector.
func (d *disk) broken(b []byte, w write) []byte {
	at := (w.off + d.rnd.Int64N(int64(len(w.data)))) &^ (sector - 1)
	if at <= w.off {
		return b
	}
	return write{w.off, w.data[:at-w.off]}.apply(b)
}

// scattered draws the fate of each sector of a write.
func (d *disk) scattered(b []byte, w write, durable int64) []byte {
	for len(w.data) > 0 {
		n := min(sector-w.off%sector, int64(len(w.data)))
		piece := write{w.off, w.data[:n]}
		w = write{w.off + n, w.data[n:]}
		fates := 4
		if piece.off&^(sector-1) < durable {
			fates = 2 // the old sector stays in place until the new one is there
		}
		switch d.rnd.IntN(fates) {
		case 1:
			b = piece.apply(b)
		case 2:
			b = write{piece.off, make([]byte, n)}.apply(b)
		case 3:
			b = write{piece.off, d.foreign(n)}.apply(b)
		}
	}
	return b
}

// foreign is what was in a sector before it became ours.
func (d *disk) foreign(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(d.rnd.Uint32())
	}
	return b
}

// length draws how long the file is.
func (d *disk) length(n *node, b []byte) []byte {
	switch d.rnd.IntN(4) {
	case 0:
		return resize(b, int64(len(n.data)))
	case 1:
		low, high := min(len(n.durable), len(n.data)), max(len(n.durable), len(n.data))
		return resize(b, int64(low+d.rnd.IntN(high-low+1)))
	}
	return b
}
