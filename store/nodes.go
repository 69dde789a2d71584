package store

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/tree"
)

// blame says in a ChunkError which image it was read for. The error may be shared, so it is a copy.
func blame(err error, image string) error {
	if err == nil {
		return nil // before ce, which is allocated
	}
	var ce *ChunkError
	if !errors.As(err, &ce) {
		return err
	}
	out := *ce
	out.Image = image
	return &out
}

// blameList is blame for a chunk of the list of an image.
func blameList(err error, image string) error {
	err = blame(err, image)
	if ce, ok := err.(*ChunkError); ok {
		ce.Offset = -1
	}
	return err
}

// leaf reads and decodes a leaf of a chunk list.
func (s *Store) leaf(sp tree.Span) ([]tree.Ref, error) {
	b, err := s.readNode(&sp.Hash)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	refs, total, err := tree.DecodeLeaf(b.Data)
	if err == nil && total != sp.Size {
		err = fmt.Errorf("%w: %d bytes, %d expected", tree.ErrNode, total, sp.Size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.Hash, Err: err}
	}
	return refs, nil
}

// inner reads and decodes a node above the leaves.
func (s *Store) inner(sp tree.Span, level int) ([]tree.Span, error) {
	b, err := s.readNode(&sp.Hash)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	spans, total, err := tree.DecodeInner(b.Data, level)
	if err == nil && total != sp.Size {
		err = fmt.Errorf("%w: %d bytes, %d expected", tree.ErrNode, total, sp.Size)
	}
	if err != nil {
		return nil, &ChunkError{Hash: sp.Hash, Err: err}
	}
	return spans, nil
}

// walkLeaves calls fn for every leaf below a node, in order. seen, if set, is asked about
// every node first; what it knows is not entered.
func (s *Store) walkLeaves(sp tree.Span, level int, seen func(*chunk.Hash) (bool, error), fn func(tree.Span) error) error {
	if seen != nil {
		if known, err := seen(&sp.Hash); known || err != nil {
			return err
		}
	}
	if level == 0 {
		return fn(sp)
	}
	spans, err := s.inner(sp, level)
	if err != nil {
		return err
	}
	for i := range spans {
		if err := s.walkLeaves(spans[i], level-1, seen, fn); err != nil {
			return err
		}
	}
	return nil
}
