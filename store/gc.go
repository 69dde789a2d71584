package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/store/collect"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/pack"
)

// GCReport tells what a GC did.
type GCReport = collect.Report

// GC removes what no image, open Reader or running ingest needs: it drops packs that are
// dead and rewrites those that are mostly dead or tiny. Ingests and readers go on
// meanwhile. It refuses to remove anything while it cannot tell what an image needs,
// that is while a record or a chunk list is damaged. On an error everything that was
// needed is still there.
func (s *Store) GC(ctx context.Context) (GCReport, error) {
	s.maint.Lock()
	defer s.maint.Unlock()
	ctx, cancel := s.bound(ctx)
	defer cancel()
	report, err := s.healing(func() (GCReport, error) { return s.collect(ctx) })
	report.Unsettled = len(s.unsettled())
	if report.Pending > 0 {
		report.Again = s.sh.Grace + 2*time.Second
	}
	if err != nil {
		return report, fmt.Errorf("gc: %w", err)
	}
	return report, nil
}

// healing does something again for as long as damaged runs are in its way that can be made anew.
func (s *Store) healing(do func() (GCReport, error)) (GCReport, error) {
	for {
		report, err := do()
		var re *index.DamagedRun
		if errors.Is(err, collect.ErrRelearned) {
			continue // ends: without a pack that went, nothing is relearned
		}
		if err == nil || !errors.As(err, &re) || !s.heal(re) {
			return report, err
		}
	}
}

func (s *Store) collect(ctx context.Context) (GCReport, error) {
	if s.sh == nil { // else prepareShared does, when it has looked around
		if err := s.stillDamaged(); err != nil {
			return GCReport{}, err
		}
	}
	g := collect.New(ctx, s.collector())
	if s.sh != nil {
		if err := g.Prepare(); err != nil {
			return GCReport{}, err
		}
	}
	if err := s.flushIndex(false); err != nil {
		return GCReport{}, err
	}
	defer s.saveBad()
	report, err := g.Run()
	if err != nil {
		return report, err
	}
	s.dead.Store(report.Dead)
	s.keepReserve()
	if err := s.flushIndex(true); err != nil || s.sh == nil {
		return report, err
	}
	return report, s.sh.ShareRun(ctx, s.ix)
}

// stillDamaged looks again at records that could not be read.
func (s *Store) stillDamaged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.sh != nil && len(s.damaged) > 0 {
		return s.damaged[0] // refreshImages has looked, and asks again for what was damaged
	}
	var left []*RecordError
	for _, d := range s.damaged {
		id, _ := disk.ParseID(filepath.Base(d.Path), disk.ImgExt)
		rec, err := s.readRecord(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && s.images[rec.Name] == nil:
			s.images[rec.Name] = &imageRec{id: id, rec: rec}
		default:
			left = append(left, d)
		}
	}
	s.damaged = left
	if len(left) > 0 {
		return left[0]
	}
	return nil
}

// snapshotPacks lists every sealed pack.
func (s *Store) snapshotPacks() []*pack.Pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*pack.Pack, 0, len(s.packs))
	for _, p := range s.packs {
		list = append(list, p)
	}
	return list
}

// Settle rewrites with zstd what ingests have stored fast: the oldest such packs, about a GiB
// of them, with workers goroutines. Ingests, readers and removes go on meanwhile. When ctx ends
// it stops between two chunks, and what was done is not done again. It may be called again for
// as long as the report says that packs are Unsettled. In a bucket there is nothing to do.
func (s *Store) Settle(ctx context.Context, workers int) (GCReport, error) {
	s.maint.Lock()
	defer s.maint.Unlock()
	report, err := s.healing(func() (GCReport, error) { return s.settle(ctx, workers) })
	report.Unsettled = len(s.unsettled())
	if err != nil {
		return report, fmt.Errorf("settling what was stored fast: %w", err)
	}
	return report, nil
}

func (s *Store) settle(ctx context.Context, workers int) (GCReport, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return GCReport{}, ErrClosed
	}
	if len(s.unsettled()) == 0 {
		return GCReport{}, ctx.Err()
	}
	if err := s.flushIndex(false); err != nil {
		return GCReport{}, err
	}
	defer s.saveBad()
	return collect.Settle(ctx, s.collector(), workers)
}

// unsettled lists the sealed packs that Settle has to rewrite.
func (s *Store) unsettled() []*pack.Pack {
	if s.sh != nil {
		return nil
	}
	return slices.DeleteFunc(s.snapshotPacks(), func(p *pack.Pack) bool { return !p.Unsettled() })
}

// gcEvery is, in grace times, how often the machines that share a bucket collect on their own.
const gcEvery = 4

// GCWait tells how long a GC that nobody asked for should wait: in a bucket it is enough if one
// of the machines collects now and then. In a folder it is always 0.
func (s *Store) GCWait(ctx context.Context) (time.Duration, error) {
	if s.sh == nil {
		return 0, nil
	}
	since, ok, err := s.sh.SinceGC(ctx)
	if err != nil || !ok {
		return 0, err
	}
	wait := gcEvery*s.sh.Grace - since
	if wait <= 0 {
		return 0, nil
	}
	return wait + rand.N(s.sh.Grace), nil // not all machines at once
}

// collector is what a GC works on.
func (s *Store) collector() *collect.Env {
	return &collect.Env{Host: (*host)(s), Index: s.ix, Fleet: s.sh, Files: s.files, Sec: s.sec, Dec: s.dec, Pools: s.pools,
		PackSize: s.o.PackSize, Young: s.o.young}
}
