package store

import (
	"path/filepath"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/collect"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// host is a Store as a GC needs it.
type host Store

func (s *host) Footer(p *pack.Pack) (*pack.Info, error) { return (*Store)(s).readFooter(p) }

func (s *host) Leaf(sp tree.Span) ([]tree.Ref, error) { return (*Store)(s).leaf(sp) }

func (s *host) WalkLeaves(t tree.Root, seen func(*chunk.Hash) (bool, error), fn func(tree.Span) error) error {
	return (*Store)(s).walkLeaves(t.Span(), t.Level, seen, fn)
}

func (s *host) Missing(h *chunk.Hash) error { return (*Store)(s).missing(h) }

func (s *host) LearnAgain(begun int64) (bool, error) { return (*Store)(s).learnAgain(begun, true) }

func (s *host) Mark(h *chunk.Hash, node bool) (known, found bool, err error) {
	return (*Store)(s).mark(h, node)
}

func (s *host) StillDamaged() error { return (*Store)(s).stillDamaged() }

func (s *host) Ingests() (list []collect.Ingest) {
	for _, in := range (*Store)(s).live() {
		list = append(list, in)
	}
	return list
}

// Needs is what the image refers to so far. A Put or Commit that is under way is waited for: it
// may have looked a chunk up and not entered it into the list yet.
func (in *Ingest) Needs() (leaves []tree.Span, more []tree.Ref) {
	in.quiesce()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != ingestRunning {
		return nil, nil
	}
	return in.tree.Spans, in.unlisted()
}

func (s *host) Records() (recs []*record.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.images {
		recs = append(recs, im.rec)
	}
	for r := range s.readers {
		recs = append(recs, r.rec)
	}
	return recs
}

func (s *host) Writers(sink pack.Sink) *pack.Writers { return (*Store)(s).packWriters(sink, 0) }

func (s *host) Pack(id disk.ID) *pack.Pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.packs[id]
}

func (s *host) Opened(p *pack.Pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing[p.ID] = struct{}{}
}

func (s *host) Sealed(p *pack.Pack) { (*Store)(s).packSealed(p) }

func (s *host) Lost(p *pack.Pack) { (*Store)(s).packLost(p) }

func (s *host) Gone(p *pack.Pack) { (*Store)(s).packGone(p) }

func (s *host) Remove(p *pack.Pack) error {
	s.mu.Lock()
	delete(s.packs, p.ID)
	s.mu.Unlock()
	return s.files.Drop(p)
}

func (s *host) SyncPacks() error { return disk.SyncDir(filepath.Join(s.dir, layout.Packs)) }
