package store

import (
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/tree"
)

// source is a Store as those who read ahead need it.
type source Store

func (s *source) Leaf(sp tree.Span) ([]tree.Ref, error) { return (*Store)(s).leaf(sp) }

func (s *source) ReadChunk(h *chunk.Hash, dst []byte) error { return (*Store)(s).readChunk(h, dst) }

func (s *source) Find(h *chunk.Hash) (pack.Loc, bool, error) { return s.ix.Find(h) }

func (s *source) ReadPack(p *pack.Pack, b []byte, off int64) error { return s.files.ReadAt(p, b, off) }

func (s *source) Decode(l *pack.Loc, h *chunk.Hash, dst, stored []byte) error {
	return (*Store)(s).decodeCopy(l, h, dst, stored)
}
