package store

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

var errNoChunk = errors.New("the store does not have it")

// readChunk fills dst with the chunk h and checks it. Of several copies the first good
// one serves.
func (s *Store) readChunk(h *Hash, dst []byte) error {
	var last *ChunkError
	for {
		if s.ix.fromQueue(h, dst) {
			return nil
		}
		l, ok, err := s.ix.find(h)
		if err != nil && s.healIndex(err) {
			continue
		}
		if err != nil {
			return &ChunkError{Hash: *h, Err: err}
		}
		if !ok && last != nil {
			return last
		}
		if !ok {
			return s.missing(h)
		}
		err = s.readCopy(l, h, dst)
		if err == nil {
			return nil
		}
		if errors.Is(err, errGone) {
			continue // it moved to another pack, or find says that it is lost
		}
		last = &ChunkError{Hash: *h, Pack: l.p.name(), Err: err}
		if !isDamage(err) {
			return last
		}
		s.ix.condemnCopy(l)
	}
}

// readCopy reads one copy of a chunk.
func (s *Store) readCopy(l loc, h *Hash, dst []byte) error {
	if int(l.raw) != len(dst) {
		return errMismatch
	}
	b := s.bufs.get(int(l.stored))
	defer b.release()
	if err := s.files.readAt(l.p, b.data, int64(l.off)); err != nil {
		return err
	}
	e := l.entry(h)
	plain, err := l.p.unseal(s.sec, &e, b.data)
	if err != nil {
		return err
	}
	return s.dec.decode(dst, plain, l.codec, *h)
}

// readNode returns a chunk whose length only the index knows.
func (s *Store) readNode(h *Hash) ([]byte, error) {
	n, ok, err := s.ix.size(h)
	if err != nil && s.healIndex(err) {
		n, ok, err = s.ix.size(h)
	}
	if err != nil {
		return nil, &ChunkError{Hash: *h, Err: err}
	}
	if !ok {
		return nil, s.missing(h)
	}
	b := make([]byte, n)
	if err := s.readChunk(h, b); err != nil {
		return nil, err
	}
	return b, nil
}

// missing says why a chunk cannot be found, and in which pack it was.
func (s *Store) missing(h *Hash) error {
	s.ix.mu.RLock()
	defer s.ix.mu.RUnlock()
	l, ok := s.ix.mem[*h]
	if !ok {
		_, _, _, ok, _ = s.ix.findRun(h, func(c loc, _ *run, _ int) bool { // an error here adds nothing
			l = c
			return true
		})
	}
	switch {
	case !ok:
		return &ChunkError{Hash: *h, Err: errNoChunk}
	case l.p.gone.Load():
		return &ChunkError{Hash: *h, Pack: l.p.name(), Err: fs.ErrNotExist}
	}
	return &ChunkError{Hash: *h, Pack: l.p.name(), Err: errMismatch}
}

// isDamage tells bytes that are lost from bytes that cannot be read just now.
func isDamage(err error) bool {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no == syscall.EIO
	}
	return !errors.Is(err, os.ErrClosed)
}
