package ahead

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/pack"
)

// fetching is a batch of chunks on their way from packs into pieces.
type fetching struct {
	pieces []*piece
	found  []located
}

// located is a piece and where its chunk stands.
type located struct {
	*piece
	pack.Loc
}

// maxGap is how many bytes nobody asked for are read along so that one read of a pack serves
// instead of two: nodes of the chunk list stand among the chunks.
const maxGap = 8 << 10

// fetch reads chunks that stand near each other in a pack with one read. What cannot be had
// at the first attempt is left to Source.ReadChunk, which knows of other copies and of what to say,
// when the reader gets there.
func (a *Reader) fetch(f *fetching) {
	f.found = f.found[:0]
	for _, p := range f.pieces {
		l, ok, err := a.src.Find(&p.ref.Hash)
		if err != nil || !ok || l.Raw != p.ref.Size {
			a.arrived(p, nil)
			continue
		}
		f.found = append(f.found, located{p, l})
	}
	slices.SortFunc(f.found, func(x, y located) int {
		return cmp.Or(bytes.Compare(x.P.ID[:], y.P.ID[:]), cmp.Compare(x.Loc.Off, y.Loc.Off))
	})
	for rest := f.found; len(rest) > 0; {
		n := together(rest)
		a.fetchRun(rest[:n])
		rest = rest[n:]
	}
	clear(f.found)
}

// together returns how many of the first chunks one read should bring.
func together(list []located) int {
	first := &list[0].Loc
	end := int64(first.Off) + int64(first.Stored)
	for i := 1; i < len(list); i++ {
		l := &list[i].Loc
		if l.P != first.P || int64(l.Off) > end+maxGap {
			return i
		}
		end = max(end, int64(l.Off)+int64(l.Stored))
	}
	return len(list)
}

// fetchRun reads chunks of one pack at once and decodes them.
func (a *Reader) fetchRun(run []located) {
	from, end := int64(run[0].Loc.Off), int64(0)
	for i := range run {
		end = max(end, int64(run[i].Loc.Off)+int64(run[i].Stored))
	}
	raw := a.p.Reads.Get(int(end - from))
	defer raw.Release()
	begun := time.Now()
	err := a.src.ReadPack(run[0].P, raw.Data, from)
	reading := time.Since(begun)
	a.p.Decoding <- struct{}{}
	defer func() { <-a.p.Decoding }()
	begun = time.Now()
	for i := range run {
		l := &run[i]
		if err != nil || a.stopped.Load() {
			a.arrived(l.piece, nil)
			continue
		}
		at := int64(l.Loc.Off) - from
		a.arrived(l.piece, a.decode(l, raw.Data[at:at+int64(l.Stored)]))
	}
	a.account(reading, time.Since(begun))
}

func (a *Reader) account(reading, decoding time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spent.reading += reading - a.spent.reading/8
	a.spent.decoding += decoding - a.spent.decoding/8
}

// decode returns the checked bytes of a chunk, or nil.
func (a *Reader) decode(l *located, stored []byte) *cache.Buf {
	b := a.p.Chunks.Get(int(l.Raw))
	if a.src.Decode(&l.Loc, &l.ref.Hash, b.Data, stored) != nil {
		b.Release()
		return nil
	}
	return b
}

// arrived ends the fetch of a piece; b is nil if it failed.
func (a *Reader) arrived(p *piece, b *cache.Buf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.buf, p.state = b, pieceReady
	if b == nil {
		p.state = pieceFailed
	}
	if p.wanted {
		p.wanted = false
		a.ready.Broadcast()
	}
	if p.dropped {
		a.discard(p)
	}
}
