package ahead

import "github.com/ckptfs/ckptfs/store/cache"

// take returns up to n bytes at off out of one piece, and the buffer they are in, held for the
// caller; nil for zeros, of which there are count. It waits for a piece that is on its way and
// returns a count of 0 if there is none: then the caller reads the chunk.
func (a *Reader) take(n int, off int64) (data []byte, b *cache.Buf, count int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		s, i := a.find(off)
		if s == nil || a.stopped.Load() {
			return nil, nil, 0
		}
		switch pc := s.pieces[i]; pc.state {
		case pieceReady:
			return a.consume(s, i, n, off)
		case pieceWaits, pieceFailed:
			a.drop(s, i)
			return nil, nil, 0
		default:
			pc.wanted = true
			a.ready.Wait()
		}
	}
}

// consume is take for a piece that is ready.
func (a *Reader) consume(s *stream, i, n int, off int64) (data []byte, b *cache.Buf, count int) {
	pc := s.pieces[i]
	skip := int(off - pc.off)
	n = min(n, int(pc.ref.Size)-skip)
	if pc.buf != nil {
		b = pc.buf.Hold()
		data = b.Data[skip : skip+n : skip+n]
	}
	if pc.left -= n; pc.left <= 0 {
		a.drop(s, i)
	}
	return data, b, n
}

// find returns the piece that holds off.
func (a *Reader) find(off int64) (*stream, int) {
	for i := range a.streams {
		s := &a.streams[i]
		for k := s.head; k < len(s.pieces); k++ {
			p := s.pieces[k]
			if p == nil || off >= p.off+int64(p.ref.Size) {
				continue
			}
			if off >= p.off {
				return s, k
			}
			break
		}
	}
	return nil, 0
}
