package store

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
	"golang.org/x/sys/unix"
)

// packSink hears what becomes of the packs of a packWriter. Its methods must not call it.
type packSink interface {
	// opened: a new pack takes chunks.
	opened(p *pack)
	// added: the bytes of chunks are in the file; comes before the pack can be sealed.
	added(p *pack, es []entry)
	// sealed: the pack is durable and visible.
	sealed(p *pack)
	// failed: the pack and all its chunks are lost; comes before anyone who waits hears.
	failed(p *pack, err error)
}

// packWriter appends chunks to packs and seals them. Any number of goroutines append at
// once: a place is reserved under the lock, the bytes are written outside of it.
type packWriter struct {
	files *packFiles
	sec   *secret.Secrets
	up    func(p *pack, r io.ReaderAt) *bucket.Upload // nil in a folder
	limit int64
	kind  byte // of pack, see newPackID
	sink  packSink

	mu      sync.Mutex
	idle    sync.Cond // signalled when unsealed drops
	cur     *pack
	pending int // packs detached from cur and not yet sealed
	free    [][]entry
}

// packWriters are two writers: nodes of chunk lists stand in packs of their own, so that
// who walks the lists reads little else.
type packWriters struct{ chunks, nodes *packWriter }

// newPackWriters makes them; kind is that of the packs of chunks.
func newPackWriters(s *Store, sink packSink, kind byte) *packWriters {
	w := &packWriters{newPackWriter(s, sink), newPackWriter(s, sink)}
	w.chunks.kind, w.nodes.kind = kind, disk.Nodes
	return w
}

// of chooses the writer.
func (w *packWriters) of(nodes bool) *packWriter {
	if nodes {
		return w.nodes
	}
	return w.chunks
}

// flush flushes both at once.
func (w *packWriters) flush() {
	var wg sync.WaitGroup
	wg.Go(w.nodes.flush)
	w.chunks.flush()
	wg.Wait()
}

func newPackWriter(s *Store, sink packSink) *packWriter {
	w := &packWriter{files: s.files, sec: s.sec, limit: s.o.PackSize, sink: sink}
	if sh := s.sh; sh != nil {
		w.up = func(p *pack, r io.ReaderAt) *bucket.Upload { return sh.b.NewUpload(sh.ctx, packKey(p.id), r) }
	}
	w.idle.L = &w.mu
	return w
}

// append stores one chunk, see appendAll.
func (w *packWriter) append(e entry, plain []byte, buf []byte) (*pack, []byte, error) {
	e.stored = uint32(len(plain))
	return w.appendAll([]entry{e}, plain, buf)
}

// appendAll stores chunks with one write: they stand in plain one after the other, encoded but
// not sealed, and stored is the length of each. It says where they stand then. Seals are made
// in buf, which is returned for the next call.
func (w *packWriter) appendAll(es []entry, plain, buf []byte) (*pack, []byte, error) {
	p, err := w.reserve(es)
	if err != nil {
		return nil, buf, err
	}
	stored := plain
	if w.sec != nil {
		buf = p.seal(w.sec, es, plain, buf[:0])
		stored = buf
	}
	off := int64(es[0].off)
	_, err = p.file.f.WriteAt(stored, off)
	if err == nil {
		w.writeBack(p, off, off+int64(len(stored)))
		w.sink.added(p, es)
	}
	w.mu.Lock()
	p.writing--
	p.wrote(off)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("writing pack: %w", err)
	}
	if err != nil && w.cur == p {
		w.detach()
	}
	seal := p.full && p.writing == 0
	w.mu.Unlock()
	if seal {
		go w.seal(p) // bounded by reserve, awaited by flush
	}
	return p, buf, err
}

// reserve finds places for chunks, one after the other in one pack.
func (w *packWriter) reserve(es []entry) (*pack, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.pending > 2 {
		w.idle.Wait() // the disk is slower than we are
	}
	if w.cur != nil && w.cur.gone.Load() {
		w.retire()
	}
	if w.cur == nil {
		if err := w.open(); err != nil {
			return nil, err
		}
	}
	p := w.cur
	if p.upload != nil {
		p.pending = append(p.pending, p.end)
	}
	for i := range es {
		if w.sec != nil {
			es[i].stored += secret.Overhead
		}
		es[i].off = uint32(p.end)
		p.end += int64(es[i].stored)
	}
	p.entries = append(p.entries, es...)
	p.writing++
	if p.end >= w.limit || len(p.entries) > maxPackEntries-maxAppend {
		w.detach()
	}
	return p, nil
}

// writeBackStep is after how many bytes of a pack the disk is asked to take them.
const writeBackStep = 8 << 20

// writeBack has the disk take what was written so far while more comes, so that the fsync which
// somebody waits for finds little to do. Where that takes longer than the next step, the kernel
// is at least asked to begin.
func (w *packWriter) writeBack(p *pack, from, to int64) {
	step := from / writeBackStep
	if p.upload != nil || step == to/writeBackStep {
		return
	}
	if !p.syncing.CompareAndSwap(false, true) {
		_ = unix.SyncFileRange(int(p.file.f.Fd()), step*writeBackStep, writeBackStep, unix.SYNC_FILE_RANGE_WRITE) // only a hint
		return
	}
	p.syncs.Go(func() {
		err := p.file.f.Sync()
		p.syncing.Store(false)
		if err != nil {
			w.lost(p, fmt.Errorf("writing pack to the disk: %w", err))
		}
	})
}

// lost gives up a pack that could not be written: the fsync that seal makes would not hear of it
// again.
func (w *packWriter) lost(p *pack, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	if w.cur == p {
		w.detach()
		if p.writing == 0 {
			go w.seal(p) // bounded by reserve, awaited by flush
		}
	}
}

// wrote tells the upload how far the file is whole after a WriteAt at off ended.
func (p *pack) wrote(off int64) {
	if p.upload == nil {
		return
	}
	i := slices.Index(p.pending, off)
	p.pending = slices.Delete(p.pending, i, i+1)
	end := p.end
	for _, o := range p.pending {
		end = min(end, o)
	}
	p.upload.Advance(end)
}

// retire detaches the current pack; one that nobody wants any more is then removed.
func (w *packWriter) retire() {
	p := w.cur
	if p.gone.Load() {
		p.err = errAbandoned
	}
	w.detach()
	if p.writing == 0 {
		go w.seal(p) // bounded by reserve, awaited by flush
	}
}

// detach takes the current pack out of use; who ends its last write seals it.
func (w *packWriter) detach() {
	w.cur.full = true
	w.cur = nil
	w.pending++
}

// open begins a pack.
func (w *packWriter) open() error {
	p := &pack{id: disk.NewPackID(w.kind), end: packHeadLen}
	p.created = p.id.Time().UnixNano()
	f, err := os.OpenFile(w.files.path(p)+disk.TmpExt, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("new pack: %w", err)
	}
	if _, err = f.WriteAt(packHead(w.sec, p.id, p.created), 0); err != nil {
		f.Close()
		os.Remove(f.Name()) // best effort: Open removes what stays
		return fmt.Errorf("new pack: %w", err)
	}
	if n := len(w.free); n > 0 {
		p.entries, w.free = w.free[n-1], w.free[:n-1]
	}
	p.file = w.files.add(p, f)
	if w.up != nil {
		p.upload = w.up(p, f)
	}
	w.cur = p
	w.sink.opened(p)
	return nil
}

// seal makes a detached pack durable and visible, or gives it up.
func (w *packWriter) seal(p *pack) {
	p.syncs.Wait()
	err := p.err
	if err == nil {
		if err = w.finish(p); err != nil {
			err = fmt.Errorf("sealing pack: %w", err)
		}
	}
	if err != nil {
		w.discard(p, err)
	} else {
		p.sealed.Store(true)
		w.sink.sealed(p)
	}
	w.files.release(p, p.file)
	w.mu.Lock()
	defer w.mu.Unlock()
	p.file, p.upload, p.pending = nil, nil, nil
	if len(w.free) < 4 {
		w.free = append(w.free, p.entries[:0])
	}
	p.entries = nil
	w.pending--
	w.idle.Broadcast()
}

func (w *packWriter) finish(p *pack) error {
	foot := packFooter(w.sec, p.id, packHead(w.sec, p.id, p.created), p.entries)
	f := p.file.f
	if _, err := f.WriteAt(foot, p.end); err != nil {
		return err
	}
	p.size = p.end + int64(len(foot))
	if p.upload != nil {
		return w.send(p)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return disk.Publish(f.Name(), w.files.path(p))
}

// send ends the upload of a pack. The file stays as a cache, which need not be durable.
func (w *packWriter) send(p *pack) error {
	if err := p.upload.Finish(p.size); err != nil {
		return err
	}
	if os.Rename(p.file.f.Name(), w.files.path(p)) == nil {
		w.files.cache.adopt(p, p.size)
	}
	return nil
}

// discard gives up a pack that was not sealed.
func (w *packWriter) discard(p *pack, err error) {
	p.dropped.Store(true)
	p.gone.Store(true)
	w.sink.failed(p, err)
	if p.upload != nil {
		p.upload.Drop()
	}
	w.files.forget(p)
	os.Remove(w.files.path(p) + disk.TmpExt) // best effort: Open removes what stays
	if !p.sealed.Load() {
		os.Remove(w.files.path(p)) // published, but the folder would not sync
	}
}

// flush seals the current pack and waits until every pack is sealed or given up. Chunks
// appended before are then durable, or failed was called.
func (w *packWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cur != nil {
		w.retire()
	}
	for w.pending > 0 {
		w.idle.Wait()
	}
}
