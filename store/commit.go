package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// Commit makes the image durable and then lists it. On an error nothing is listed, the
// ingest is aborted and the name is free again.
func (in *Ingest) Commit() error {
	in.putting.Lock()
	defer in.putting.Unlock()
	if err := in.usable(); err != nil {
		in.abort()
		return err
	}
	rec, err := in.complete()
	if err == nil {
		id := disk.NewID()
		if in.s.sh != nil {
			err = in.commitShared(id, rec)
		} else {
			err = in.commitHere(id, rec)
		}
		if err == nil {
			in.list(&imageRec{id: id, rec: rec})
			return nil
		}
	}
	err = in.fail(err)
	in.abort()
	return err
}

// commitHere makes packs and record durable at the same time; each of the two takes the disk a
// while. The record gets its name last.
func (in *Ingest) commitHere(id disk.ID, rec *record.Record) error {
	path := in.s.recordPath(id)
	b, err := record.File(in.s.sec, id, rec)
	if err != nil {
		return err
	}
	var wrote error
	var record sync.WaitGroup
	record.Go(func() { wrote = disk.WriteTemp(path, b) })
	in.s.w.Flush()
	record.Wait()
	if err = in.failed(); err == nil {
		err = wrote
	}
	if err == nil {
		err = disk.Publish(path+disk.TmpExt, path)
	}
	if err != nil {
		os.Remove(path + disk.TmpExt) // best effort: Open removes what stays
	}
	return err
}

// complete stores everything but the record. It is all in packs then, but not yet durable.
func (in *Ingest) complete() (*record.Record, error) {
	data, err := in.tree.Finish(&in.mu)
	if err != nil {
		return nil, err
	}
	rec := &record.Record{Name: in.name, Created: in.created.UnixNano(), Chunks: in.tree.Count, Data: data,
		Host: in.s.o.Host, Series: in.series}
	if rec.Attach, err = in.storeAttached(); err != nil {
		return nil, err
	}
	in.written()
	rec.Unique = in.unique.Load()
	return rec, in.failed()
}

// written waits until all chunks that the image refers to are in packs, or cannot be.
func (in *Ingest) written() {
	in.s.enc.hurry()
	defer in.s.enc.calm()
	in.jobs.Wait()
}

// failed reports why the ingest cannot be committed, if so.
func (in *Ingest) failed() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil {
		return in.err
	}
	return context.Cause(in.ctx)
}

// list shows a durable image.
func (in *Ingest) list(im *imageRec) {
	s := in.s
	s.mu.Lock()
	s.images[in.name] = im
	delete(s.running, in)
	s.session.committed = true
	dead := s.unneeded() // an ingest may have been given up between our flush and now
	s.mu.Unlock()
	in.mu.Lock()
	in.state, in.err = ingestDone, nil // an Abort that came too late changes nothing
	in.win.Clear()
	in.wake()
	in.mu.Unlock()
	in.free()
	if err := s.dropPacks(dead); err != nil {
		s.o.Log(fmt.Sprintf("store %s: what was given up stays until GC: %v", s.dir, err))
	}
	s.flushLater(flushAt)
}

// storeAttached stores the small files.
func (in *Ingest) storeAttached() ([]record.Side, error) {
	in.mu.Lock()
	sides := in.attach
	in.attach = nil
	in.mu.Unlock()
	total := 0
	for i := range sides {
		if err := record.CheckName(sides[i].name); err != nil {
			return nil, err
		}
		if total += len(sides[i].data); total > record.MaxAttached {
			return nil, fmt.Errorf("attachments of more than %d MiB", record.MaxAttached>>20)
		}
	}
	var recs []record.Side
	for i := range sides {
		t, err := in.storeSide(sides[i].data)
		if err != nil {
			return nil, fmt.Errorf("attachment %q: %w", sides[i].name, err)
		}
		recs = append(recs, record.Side{Name: sides[i].name, Data: t})
	}
	return recs, nil
}

func (in *Ingest) storeSide(data []byte) (tree.Root, error) {
	t := tree.Builder{Put: in.putNode}
	for len(data) > 0 {
		part := data[:min(len(data), 64<<10)]
		data = data[len(part):]
		ref := tree.Ref{Hash: in.s.sec.IDOf(part), Size: uint32(len(part)), Zero: chunk.AllZero(part)}
		if !ref.Zero {
			if _, err := in.putBytes(part, false); err != nil {
				return tree.Root{}, err
			}
		}
		if t.Add(ref) {
			if err := t.CloseLeaf(&in.mu); err != nil {
				return tree.Root{}, err
			}
		}
	}
	return t.Finish(&in.mu)
}

// Abort gives the image up: it is never listed and its name is free. Chunks it wrote are
// removed, or left for GC if another ingest runs that may refer to them. Abort after
// Commit or Abort does nothing. It may be called while a Put runs.
func (in *Ingest) Abort() error {
	in.mu.Lock()
	if in.state == ingestRunning && in.err == nil {
		in.err = fmt.Errorf("image %q: %w", in.name, ErrAborted)
		in.wake()
	}
	in.mu.Unlock()
	in.putting.Lock()
	defer in.putting.Unlock()
	return in.abort()
}

// abort is Abort with putting held.
func (in *Ingest) abort() error {
	in.mu.Lock()
	over := in.state != ingestRunning
	if !over {
		in.state = ingestAborted
		in.win.Clear()
		clear(in.ahead)
		in.attach = nil
	}
	in.mu.Unlock()
	if over {
		return nil
	}
	in.free()
	in.written()
	dead := in.s.leave(in)
	return in.s.dropPacks(dead)
}

// leave ends an ingest that was not committed. If nobody can refer to what was written
// since the store was last idle, it returns the packs, which are then gone for all.
func (s *Store) leave(in *Ingest) []*pack.Pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, in)
	return s.unneeded()
}

// unneeded is what leave returns. Called with mu held.
func (s *Store) unneeded() []*pack.Pack {
	if len(s.running) > 0 {
		return nil
	}
	dead := s.session.packs
	if s.session.committed || s.sh != nil { // images, or other machines, refer to what is sealed
		dead = slices.DeleteFunc(dead, func(p *pack.Pack) bool { return p.Sealed.Load() })
	}
	s.session = session{}
	for _, p := range dead {
		p.Gone.Store(true) // before the next Begin can look anything up
		delete(s.packs, p.ID)
	}
	return dead
}

// dropPacks removes packs that are gone.
func (s *Store) dropPacks(dead []*pack.Pack) error {
	if len(dead) == 0 {
		return nil
	}
	s.w.Flush() // takes the unsealed one out
	var errs []error
	for _, p := range dead {
		s.ix.Lose(p)
		errs = append(errs, s.files.Drop(p))
	}
	errs = append(errs, disk.SyncDir(filepath.Join(s.dir, layout.Packs)))
	return errors.Join(errs...)
}

// packWriters makes writers for packs of a kind.
func (s *Store) packWriters(sink pack.Sink, kind byte) *pack.Writers {
	c := pack.Config{Files: s.files, Sec: s.sec, Limit: s.o.PackSize, Sink: sink}
	if sh := s.sh; sh != nil {
		c.Up = func(id disk.ID, r io.ReaderAt) pack.Upload { return sh.Bucket.NewUpload(sh.Ctx, fleet.PackKey(id), r) }
	}
	return pack.NewWriters(c, kind)
}

// ingestSink is what the packs of ingests tell the store.
type ingestSink Store

func (s *ingestSink) Opened(p *pack.Pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session.packs = append(s.session.packs, p)
	s.writing[p.ID] = struct{}{}
}

func (s *ingestSink) Added(p *pack.Pack, es []pack.Entry) { s.ix.Added(p, es) }

func (s *ingestSink) Sealed(p *pack.Pack) { (*Store)(s).packSealed(p) }

// failed ends every ingest that runs: any of them may refer to a chunk of the pack.
func (s *ingestSink) Failed(p *pack.Pack, err error) {
	if !errors.Is(err, pack.ErrAbandoned) {
		for _, in := range (*Store)(s).live() {
			in.fail(err)
		}
	}
	(*Store)(s).packLost(p)
}

// live lists the ingests that run.
func (s *Store) live() []*Ingest {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Ingest, 0, len(s.running))
	for in := range s.running {
		list = append(list, in)
	}
	return list
}

// packSealed enters a sealed pack.
func (s *Store) packSealed(p *pack.Pack) {
	s.mu.Lock()
	delete(s.writing, p.ID)
	if !p.Gone.Load() {
		s.packs[p.ID] = p
		p.Doomed.Store(s.doomed[p.ID]) // one that took long to send may look old to others
	}
	s.mu.Unlock()
	s.ix.Sealed(p)
	s.flushLater(2 * flushAt)
}

// packLost forgets a pack that will not be sealed.
func (s *Store) packLost(p *pack.Pack) {
	s.mu.Lock()
	delete(s.writing, p.ID)
	s.mu.Unlock()
	s.ix.Lose(p)
}
