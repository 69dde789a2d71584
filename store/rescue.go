package store

import (
	"fmt"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/tree"
)

// rescue stores again what the ingest refers to and only a pack has that is about to be
// removed. Called with putting held.
func (in *Ingest) rescue() error {
	if !in.endangered() {
		return nil
	}
	in.mu.Lock()
	spans, open := in.tree.Spans, in.unlisted()
	in.mu.Unlock()
	in.resetPacks()
	for _, sp := range spans { // only Append and Commit add to them, and we hold putting
		if err := in.rescueNode(sp.Hash); err != nil {
			return err
		}
		refs, err := in.s.leaf(sp)
		if err != nil {
			return err
		}
		if err := in.rescueRefs(refs); err != nil {
			return err
		}
	}
	for _, h := range in.extra {
		if err := in.rescueNode(h); err != nil {
			return err
		}
	}
	return in.rescueRefs(open)
}

func (in *Ingest) rescueRefs(refs []tree.Ref) error {
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		if err := in.rescueChunk(refs[i].Hash, int(refs[i].Size), false); err != nil {
			return err
		}
	}
	return nil
}

// rescueNode is rescueChunk for a chunk whose length only the index knows.
func (in *Ingest) rescueNode(h chunk.Hash) error {
	n, err := in.s.size(&h)
	if err != nil {
		return err
	}
	return in.rescueChunk(h, n, true)
}

func (in *Ingest) rescueChunk(h chunk.Hash, n int, node bool) error {
	known, err := in.s.known(&h, in)
	if known || err != nil {
		return err
	}
	b := in.s.pools.Chunks.Get(n)
	defer b.Release()
	if err := in.s.readChunk(&h, b.Data); err != nil {
		return fmt.Errorf("another machine is removing a pack that this image needs, and it cannot be copied: %w", err)
	}
	return in.storeOne(&h, b, node)
}
