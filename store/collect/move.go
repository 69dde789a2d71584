package collect

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/klauspost/compress/zstd"
)

// What is moved at once: some chunks for each goroutine, and a bounded share of memory.
const (
	moveChunks = 128
	moveBytes  = 2 << 20 // of chunks; one more may be begun
)

// settledLevel is how hard zstd tries for what stays.
const settledLevel = zstd.SpeedDefault

// errUnfit says that a pack is none that Settle should rewrite.
var errUnfit = errors.New("the pack was not stored fast")

// moving is a chunk on its way from a pack to one of ours.
type moving struct {
	e     pack.Entry
	buf   *cache.Buf
	plain []byte // what will be stored, in buf; not sealed
	codec uint8
	again bool // it was encoded again
	err   error
}

// move copies what is wanted of a pack and returns the number of chunks.
func (g *Collection) move(w *pack.Writers, p *pack.Pack) (n int, err error) {
	entries, err := g.entries(p)
	if err != nil {
		return 0, err
	}
	var batch []moving
	size := 0
	for i := range entries {
		wanted, err := g.wanted(p, &entries[i])
		if err == nil {
			err = g.ctx.Err()
		}
		if err != nil {
			return n, err
		}
		if wanted {
			n++
			batch = append(batch, moving{e: entries[i]})
			size += int(entries[i].Raw)
		}
		if len(batch) == moveChunks || size >= moveBytes || i == len(entries)-1 {
			if err := g.moveBatch(w, p, batch); err != nil {
				return n, err
			}
			batch, size = batch[:0], 0
		}
	}
	return n, nil
}

// entries lists what a pack holds.
func (g *Collection) entries(p *pack.Pack) ([]pack.Entry, error) {
	info, err := g.env.Footer(p)
	switch {
	case err == nil && g.fit != nil && !g.fit(p, info.Entries):
		return nil, errUnfit
	case err == nil:
		return info.Entries, nil
	case errors.Is(err, pack.ErrCut) && g.fit != nil:
		return nil, errUnfit
	case errors.Is(err, pack.ErrCut):
		return g.env.Index.EntriesOf(p), nil
	case damage.Is(err) && !errors.Is(err, pack.ErrGone):
		return nil, fmt.Errorf("%w: %w", damage.Err, err)
	}
	return nil, err
}

// moveBatch moves some chunks of p. They are read and encoded by several goroutines, and
// written in the order in which they stood.
func (g *Collection) moveBatch(w *pack.Writers, p *pack.Pack, batch []moving) error {
	if len(g.comps) == 0 {
		g.comps = make([]*codec.Compressor, max(1, g.workers))
	}
	var next atomic.Int64
	work := func(c **codec.Compressor) {
		for i := next.Add(1) - 1; i < int64(len(batch)); i = next.Add(1) - 1 {
			m := &batch[i]
			if m.err = g.ctx.Err(); m.err == nil {
				m.err = g.load(p, m, c)
			}
		}
	}
	var others sync.WaitGroup
	for i := range g.comps[1:] {
		others.Go(func() { work(&g.comps[1+i]) })
	}
	work(&g.comps[0])
	others.Wait()
	var err error
	for i := range batch {
		m := &batch[i]
		if err == nil {
			err = m.err
		}
		if err == nil {
			err = g.store(w, p, m)
		}
		if m.buf != nil {
			m.buf.Release()
		}
	}
	return err
}

// load reads a chunk of p, if it is whole, and makes of it what will be stored: the same, or
// if it was stored fast what zstd makes of it.
func (g *Collection) load(p *pack.Pack, m *moving, c **codec.Compressor) error {
	s, e := g.env, &m.e
	stored, raw := s.Pools.Chunks.Get(int(e.Stored)), s.Pools.Chunks.Get(int(e.Raw))
	defer raw.Release()
	m.buf = stored
	var err error
	m.plain, err = g.checkedChunk(s.Files.ReadAt, p, e, stored.Data, raw.Data)
	if err != nil && s.Fleet != nil && damage.Is(err) && !errors.Is(err, pack.ErrGone) {
		s.Files.Cache.Forget(p) // it may have come damaged
		m.plain, err = g.checkedChunk(s.Files.Cache.Fetch, p, e, stored.Data, raw.Data)
	}
	if errors.Is(err, pack.ErrGone) || (err != nil && !damage.Is(err)) {
		return err
	}
	if err != nil {
		s.Index.CondemnCopy(pack.Loc{P: p, Off: e.Off})
		return &damage.ChunkError{Hash: e.Hash, Pack: p.Name(), Err: err}
	}
	m.codec = e.Codec
	if !codec.Provisional(e.Codec) && !(p.ID.IsFast() && e.Codec == codec.Raw) {
		return nil
	}
	if *c == nil {
		if *c, err = codec.NewCompressor(settledLevel); err != nil {
			return err
		}
	}
	m.again = true
	stored.Data, m.codec = (*c).Append(stored.Data[:0], raw.Data)
	m.plain = stored.Data
	return nil
}

// checkedChunk reads a chunk as it is stored, decrypted, and checks it.
func (g *Collection) checkedChunk(readAt func(*pack.Pack, []byte, int64) error, p *pack.Pack, e *pack.Entry, stored, raw []byte) (plain []byte, err error) {
	if err := readAt(p, stored, int64(e.Off)); err != nil {
		return nil, err
	}
	plain, err = p.Unseal(g.env.Sec, e, stored)
	if err == nil {
		err = g.env.Dec.Decode(raw, plain, e.Codec, e.Hash)
	}
	return plain, err
}

// store writes a loaded chunk.
func (g *Collection) store(w *pack.Writers, p *pack.Pack, m *moving) (err error) {
	e := pack.Entry{Hash: m.e.Hash, Raw: m.e.Raw, Codec: m.codec}
	if m.again {
		g.report.SettledFrom += int64(m.e.Stored)
		g.report.SettledTo += int64(len(m.plain))
		if g.env.Sec != nil {
			g.report.SettledTo += secret.Overhead
		}
	}
	_, g.sealBuf, err = w.Of(p.ID.HasNodes()).Append(e, m.plain, g.sealBuf)
	return err
}

// alive reports whether the copy of a chunk in p is the one that is needed.
func (g *Collection) alive(p *pack.Pack, e *pack.Entry) (bool, error) {
	return g.env.Index.IsAlive(p, e)
}
