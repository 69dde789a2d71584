package fusefs

import (
	"context"

	"github.com/ckptfs/ckptfs/store"
)

// Prune removes what a policy does not keep, as the mount does with its own: somebody asks for it
// who cannot open the store, since the mount has it. who is for the log.
func (s *Server) Prune(ctx context.Context, p store.Policy, who string) (store.PruneReport, error) {
	p.Spare = s.f.spares
	rep, err := s.f.store.Prune(ctx, p)
	s.f.removed(&rep, " (asked for by "+who+")")
	return rep, err
}

// GC frees space for somebody else, see Prune.
func (s *Server) GC(ctx context.Context, who string) (store.GCReport, error) {
	defer s.f.settler.storing()() // it gives way to us
	rep, err := s.f.store.GC(ctx)
	if rep.Freed > 0 {
		s.f.logf("freed %d bytes in the store (asked for by %s)", rep.Freed, who)
	}
	return rep, err
}

// removed notes which images a Prune has removed.
func (f *filesystem) removed(rep *store.PruneReport, why string) {
	for i := range rep.Removed {
		r := &rep.Removed[i]
		f.logf("image %s removed: %s%s", r.Name, r.Why, why)
		f.forgetImage(r.Name)
	}
	if len(rep.Removed) > 0 {
		f.collector.garbage()
	}
}
