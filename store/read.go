package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/pack"
)

var errNoChunk = errors.New("the store does not have it")

// readChunk fills dst with the chunk h and checks it. Of several copies the first good
// one serves.
func (s *Store) readChunk(h *chunk.Hash, dst []byte) error {
	var last *ChunkError
	begun, relearned := int64(0), false
	if s.sh != nil {
		begun = fleet.Now()
	}
	for {
		if s.queue.read(h, dst) {
			return nil
		}
		l, ok, err := s.ix.Find(h)
		if err != nil && s.healIndex(err) {
			continue
		}
		if err != nil {
			return &ChunkError{Hash: *h, Err: err}
		}
		if !ok && last != nil {
			return last
		}
		if !ok && s.sh != nil && s.ix.Absolve(h) {
			continue // what came damaged from a bucket need not be damaged there
		}
		if !ok && s.sh != nil && s.sh.Seen.Load() < begun {
			if err := s.sh.Freshen(s.sh.Ctx, begun); err != nil {
				return &ChunkError{Hash: *h, Err: err}
			}
			continue // another machine has stored or moved it
		}
		if !ok && !relearned {
			relearned = true
			again, err := s.learnAgain(begun, false)
			if err != nil {
				return &ChunkError{Hash: *h, Err: err}
			}
			if again {
				continue
			}
		}
		if !ok {
			return s.readBad(h, dst)
		}
		err = s.readCopy(l, h, dst)
		if err != nil && s.sh != nil && damage.Is(err) && !errors.Is(err, pack.ErrGone) {
			err = s.readCopyAgain(l, h, dst)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, pack.ErrGone) {
			continue // it moved to another pack, or find says that it is lost
		}
		last = &ChunkError{Hash: *h, Pack: l.P.Name(), Err: err}
		if !damage.Is(err) {
			return last
		}
		s.ix.CondemnCopy(l)
	}
}

// readBad tries a copy that was found damaged before: the disk may have recovered, or the
// file was put back.
func (s *Store) readBad(h *chunk.Hash, dst []byte) error {
	l, ok := s.ix.AnyCopy(h)
	if !ok || l.P.Gone.Load() {
		return s.missing(h)
	}
	if err := s.readCopy(l, h, dst); err != nil {
		return &ChunkError{Hash: *h, Pack: l.P.Name(), Err: err}
	}
	s.ix.Forgive(l)
	return nil
}

// readCopy reads one copy of a chunk.
func (s *Store) readCopy(l pack.Loc, h *chunk.Hash, dst []byte) error {
	return s.readCopyWith(s.files.ReadAt, l, h, dst)
}

// readCopyAgain reads one copy of a chunk from the bucket itself: what came before may have
// been damaged on its way, or in the cache.
func (s *Store) readCopyAgain(l pack.Loc, h *chunk.Hash, dst []byte) error {
	s.files.Cache.Forget(l.P)
	return s.readCopyWith(s.files.Cache.Fetch, l, h, dst)
}

func (s *Store) readCopyWith(readAt func(*pack.Pack, []byte, int64) error, l pack.Loc, h *chunk.Hash, dst []byte) error {
	if int(l.Raw) != len(dst) {
		return codec.ErrMismatch
	}
	b := s.pools.Chunks.Get(int(l.Stored))
	defer b.Release()
	if err := readAt(l.P, b.Data, int64(l.Off)); err != nil {
		return err
	}
	return s.decodeCopy(&l, h, dst, b.Data)
}

// decodeCopy makes the chunk out of what stands in its place in a pack, and checks it. It may
// use stored to decrypt in.
func (s *Store) decodeCopy(l *pack.Loc, h *chunk.Hash, dst, stored []byte) error {
	e := l.Entry(h)
	plain, err := l.P.Unseal(s.sec, &e, stored)
	if err != nil {
		return err
	}
	return s.dec.Decode(dst, plain, l.Codec, *h)
}

// readNode returns a chunk whose length only the index knows, in a buffer of its own.
func (s *Store) readNode(h *chunk.Hash) (*cache.Buf, error) {
	n, err := s.size(h)
	if err != nil {
		return nil, err
	}
	b := s.pools.Chunks.Get(n)
	if err := s.readChunk(h, b.Data); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// size returns the length of a chunk.
func (s *Store) size(h *chunk.Hash) (int, error) {
	begun := fleet.Now()
	n, ok, err := s.sizeOf(h)
	if err != nil && s.healIndex(err) {
		n, ok, err = s.sizeOf(h)
	}
	if err == nil && !ok && s.sh != nil && s.ix.Absolve(h) {
		n, ok, err = s.sizeOf(h)
	}
	if err == nil && !ok && s.sh != nil {
		if err = s.sh.Freshen(s.sh.Ctx, begun); err == nil {
			n, ok, err = s.sizeOf(h)
		}
	}
	if err == nil && !ok {
		var again bool
		if again, err = s.learnAgain(begun, false); again {
			n, ok, err = s.sizeOf(h)
		}
	}
	if err != nil {
		return 0, &ChunkError{Hash: *h, Err: err}
	}
	if !ok {
		l, bad := s.ix.AnyCopy(h)
		if !bad {
			return 0, s.missing(h)
		}
		n = int(l.Raw) // it was found damaged, but readBad tries it
	}
	return n, nil
}

// missing says why a chunk cannot be found, and in which pack it was.
func (s *Store) missing(h *chunk.Hash) error {
	l, ok := s.ix.AnyCopy(h)
	switch {
	case !ok:
		err := errNoChunk
		for i, p := range s.ix.Unreadable() {
			if i == 3 {
				break // the log of Open and Verify name all
			}
			err = fmt.Errorf("%w; it may be in pack %s, whose footer is damaged", err, p.Name())
		}
		return &ChunkError{Hash: *h, Err: err}
	case l.P.Gone.Load():
		return &ChunkError{Hash: *h, Pack: l.P.Name(), Err: fs.ErrNotExist}
	}
	return &ChunkError{Hash: *h, Pack: l.P.Name(), Err: codec.ErrMismatch}
}
