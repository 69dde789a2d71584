package cache

import "github.com/ckptfs/ckptfs/store/chunk"

// Gathered is a range of an image that lies where its chunks were decoded to, in pieces. The
// zero value is ready for Gather.
type Gathered struct {
	// Slices are the bytes in order. They may be read until Release.
	Slices [][]byte
	bufs   []*Buf
}

// Release gives the buffers back. The Gathered can be used again.
func (g *Gathered) Release() {
	for i, b := range g.bufs {
		b.Release()
		g.bufs[i] = nil
	}
	clear(g.Slices)
	g.Slices, g.bufs = g.Slices[:0], g.bufs[:0]
}

// Held is how many buffers it holds.
func (g *Gathered) Held() int { return len(g.bufs) }

// Add appends a piece as long as p that lies in b, held for it (nil: zeros). It is copied to p
// if there is no g, and if the memory is somebody else's, who may take it away. It
// returns how long the piece is.
func (g *Gathered) Add(p, data []byte, b *Buf) int {
	switch {
	case b == nil && g == nil:
		clear(p)
	case b == nil:
		g.Slices = append(g.Slices, chunk.Zeros[:len(p)])
	case g == nil || b.pool == nil:
		copy(p, data)
		b.Release()
		return g.Own(p)
	default:
		g.Slices, g.bufs = append(g.Slices, data), append(g.bufs, b)
	}
	return len(p)
}

// Own appends bytes that were read into memory of the caller.
func (g *Gathered) Own(p []byte) int {
	if g != nil && len(p) > 0 {
		g.Slices = append(g.Slices, p)
	}
	return len(p)
}
