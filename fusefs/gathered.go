package fusefs

import (
	"errors"
	"io"
	"sync"

	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// gathered is the reply to a READ of a stored image: the kernel takes the bytes from where the
// store decoded them to. go-fuse writes what has Slices with one writev.
type gathered struct {
	store.Gathered
	n int
}

// maxSlices is how many pieces of a reply one writev(2) takes, with room for go-fuse's own:
// IOV_MAX is 1024.
const maxSlices = 1000

var gatherings = sync.Pool{New: func() any { return new(gathered) }}

// gatherer is an image that is stored, or is being stored.
type gatherer interface {
	Gather(g *store.Gathered, p []byte, off int64) (int, error)
}

// gather reads len(dest) bytes at off, all of which there must be; dest is used for what is not
// in memory yet.
func gather(r gatherer, dest []byte, off int64) (fuse.ReadResult, error) {
	g := gatherings.Get().(*gathered)
	var err error
	if g.n, err = r.Gather(&g.Gathered, dest, off); g.n < len(dest) { // io.ReaderAt may say EOF with the last bytes
		g.Done()
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if len(g.Gathered.Slices) > maxSlices {
		g.Bytes(dest) // each byte that is in dest already is in its place
		g.Done()
		return fuse.ReadResultData(dest), nil
	}
	return g, nil
}

func (g *gathered) Slices() ([][]byte, fuse.Status) { return g.Gathered.Slices, fuse.OK }

func (g *gathered) Size() int { return g.n }

func (g *gathered) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, b := range g.Gathered.Slices {
		buf = append(buf, b...)
	}
	return buf, fuse.OK
}

func (g *gathered) Done() {
	g.Release()
	gatherings.Put(g)
}
