package store

import "github.com/ckptfs/ckptfs/store/chunk"

// Gathered is a range of an image that lies where its chunks were decoded to, in pieces. The
// zero value is ready for Gather.
type Gathered struct {
	// Slices are the bytes in order. They may be read until Release.
	Slices [][]byte
	bufs   []*buf
}

// Release gives the buffers back. The Gathered can be used again.
func (g *Gathered) Release() {
	for i, b := range g.bufs {
		b.release()
		g.bufs[i] = nil
	}
	clear(g.Slices)
	g.Slices, g.bufs = g.Slices[:0], g.bufs[:0]
}

// Gather is ReadAt for who hands the bytes on and does not need them in one piece: what was
// read ahead is not copied. p is for what was not. g.Slices hold as many bytes as it
// returns, and must be released even after an error.
func (r *Reader) Gather(g *Gathered, p []byte, off int64) (int, error) { return r.read(g, p, off) }

// add appends a piece as long as p that lies in b, held for it (nil: zeros). It is copied to p
// if there is no g, and if the memory is somebody else's, who may take it away. It
// returns how long the piece is.
func (g *Gathered) add(p, data []byte, b *buf) int {
	switch {
	case b == nil && g == nil:
		clear(p)
	case b == nil:
		g.Slices = append(g.Slices, chunk.Zeros[:len(p)])
	case g == nil || b.pool == nil:
		copy(p, data)
		b.release()
		return g.own(p)
	default:
		g.Slices, g.bufs = append(g.Slices, data), append(g.bufs, b)
	}
	return len(p)
}

// own appends bytes that were read into memory of the caller.
func (g *Gathered) own(p []byte) int {
	if g != nil && len(p) > 0 {
		g.Slices = append(g.Slices, p)
	}
	return len(p)
}
