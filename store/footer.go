package store

import (
	"errors"

	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/pack"
)

// tailLen is how much of the end of a pack is fetched for its footer: enough for 6,500 chunks.
const tailLen = 256 << 10

// footerReader reads head and footer of a pack in a bucket: the end comes with one request,
// and the head is known.
type footerReader struct {
	s    *Store
	p    *pack.Pack
	tail []byte
	from int64 // offset of tail
	err  error
}

func (s *Store) newFooterReader(p *pack.Pack) *footerReader {
	r := &footerReader{s: s, p: p, from: max(0, p.Size-tailLen)}
	r.tail = make([]byte, p.Size-r.from)
	r.err = s.files.Cache.Fetch(p, r.tail, r.from)
	return r
}

func (r *footerReader) ReadAt(b []byte, off int64) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case off >= r.from:
		return copy(b, r.tail[off-r.from:]), nil
	case off == 0 && len(b) == pack.HeadLen:
		return copy(b, pack.Head(r.s.sec, r.p.ID, r.p.Created)), nil
	}
	return len(b), r.s.files.Cache.Fetch(r.p, b, off)
}

// readSharedFooter is ReadFooter for a pack of a bucket that is not here. What came damaged
// is asked for again.
func (s *Store) readSharedFooter(p *pack.Pack) (info *pack.Info, err error) {
	for tries := 1; ; tries++ {
		info, err = pack.Read(s.sec, s.newFooterReader(p), p.Size)
		if err == nil || !damage.Is(err) || errors.Is(err, pack.ErrGone) || tries == 3 {
			return info, err
		}
		if !p.Sealed.Load() {
			if err := s.sizeAgain(p); err != nil {
				return nil, err
			}
		}
	}
}

// sizeAgain asks for the size of a pack, which a damaged listing may have told wrong.
func (s *Store) sizeAgain(p *pack.Pack) error {
	size, err := s.sh.PackSize(p.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Size = size
	return nil
}
