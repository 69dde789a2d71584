package pack

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
	"golang.org/x/sys/unix"
)

// Sink hears what becomes of the packs of a Writer. Its methods must not call it.
type Sink interface {
	// Opened: a new pack takes chunks.
	Opened(p *Pack)
	// Added: the bytes of chunks are in the file; comes before the pack can be sealed.
	Added(p *Pack, es []Entry)
	// Sealed: the pack is durable and visible.
	Sealed(p *Pack)
	// Failed: the pack and all its chunks are lost; comes before anyone who waits hears.
	Failed(p *Pack, err error)
}

// Upload sends a pack to where others see it while it is being written.
type Upload interface {
	// Advance says that all bytes before end are written and stay. It does not wait.
	Advance(end int64)
	// Finish sends what is left of size bytes and makes the pack visible.
	Finish(size int64) error
	// Drop gives the upload up.
	Drop()
}

// Config is what Writers need.
type Config struct {
	Files *Files
	Sec   *secret.Secrets                        // nil: not encrypted
	Up    func(id disk.ID, r io.ReaderAt) Upload // begins an upload; nil in a folder
	Limit int64                                  // bytes of a full pack
	Sink  Sink
}

// Writer appends chunks to packs and seals them. Any number of goroutines append at
// once: a place is reserved under the lock, the bytes are written outside of it.
type Writer struct {
	Config
	Kind byte // of pack, see disk.NewPackID

	mu      sync.Mutex
	idle    sync.Cond // signalled when unsealed drops
	cur     *Pack
	pending int // packs detached from cur and not yet sealed
	free    [][]Entry
}

// Writers are two writers: nodes of chunk lists stand in packs of their own, so that
// who walks the lists reads little else.
type Writers struct{ Chunks, nodes *Writer }

// NewWriters makes them; kind is that of the packs of chunks.
func NewWriters(c Config, kind byte) *Writers {
	return &Writers{newPackWriter(c, kind), newPackWriter(c, disk.Nodes)}
}

// Of chooses the writer.
func (w *Writers) Of(nodes bool) *Writer {
	if nodes {
		return w.nodes
	}
	return w.Chunks
}

// Flush flushes both at once.
func (w *Writers) Flush() {
	var wg sync.WaitGroup
	wg.Go(w.nodes.flush)
	w.Chunks.flush()
	wg.Wait()
}

func newPackWriter(c Config, kind byte) *Writer {
	w := &Writer{Config: c, Kind: kind}
	w.idle.L = &w.mu
	return w
}

// Append stores one chunk, see AppendAll.
func (w *Writer) Append(e Entry, plain []byte, buf []byte) (*Pack, []byte, error) {
	e.Stored = uint32(len(plain))
	return w.AppendAll([]Entry{e}, plain, buf)
}

// AppendAll stores chunks with one write: they stand in plain one after the other, encoded but
// not sealed, and stored is the length of each. It says where they stand then. Seals are made
// in buf, which is returned for the next call.
func (w *Writer) AppendAll(es []Entry, plain, buf []byte) (*Pack, []byte, error) {
	p, err := w.reserve(es)
	if err != nil {
		return nil, buf, err
	}
	stored := plain
	if w.Sec != nil {
		buf = p.seal(w.Sec, es, plain, buf[:0])
		stored = buf
	}
	off := int64(es[0].Off)
	_, err = p.file.f.WriteAt(stored, off)
	if err == nil {
		w.writeBack(p, off, off+int64(len(stored)))
		w.Sink.Added(p, es)
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
func (w *Writer) reserve(es []Entry) (*Pack, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.pending > 2 {
		w.idle.Wait() // the disk is slower than we are
	}
	if w.cur != nil && w.cur.Gone.Load() {
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
		if w.Sec != nil {
			es[i].Stored += secret.Overhead
		}
		es[i].Off = uint32(p.end)
		p.end += int64(es[i].Stored)
	}
	p.entries = append(p.entries, es...)
	p.writing++
	if p.end >= w.Limit || len(p.entries) > maxPackEntries-maxAppend {
		w.detach()
	}
	return p, nil
}

// WriteBackStep is after how many bytes of a pack the disk is asked to take them.
const WriteBackStep = 8 << 20

// writeBack has the disk take what was written so far while more comes, so that the fsync which
// somebody waits for finds little to do. Where that takes longer than the next step, the kernel
// is at least asked to begin.
func (w *Writer) writeBack(p *Pack, from, to int64) {
	step := from / WriteBackStep
	if p.upload != nil || step == to/WriteBackStep {
		return
	}
	if !p.syncing.CompareAndSwap(false, true) {
		_ = unix.SyncFileRange(int(p.file.f.Fd()), step*WriteBackStep, WriteBackStep, unix.SYNC_FILE_RANGE_WRITE) // only a hint
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
func (w *Writer) lost(p *Pack, err error) {
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

// Fail gives up the pack that is being written, as if the disk had lost it. For tests.
func (w *Writer) Fail(err error) {
	w.mu.Lock()
	p := w.cur
	w.mu.Unlock()
	w.lost(p, err)
}

// wrote tells the upload how far the file is whole after a WriteAt at off ended.
func (p *Pack) wrote(off int64) {
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
func (w *Writer) retire() {
	p := w.cur
	if p.Gone.Load() {
		p.err = ErrAbandoned
	}
	w.detach()
	if p.writing == 0 {
		go w.seal(p) // bounded by reserve, awaited by flush
	}
}

// detach takes the current pack out of use; who ends its last write seals it.
func (w *Writer) detach() {
	w.cur.full = true
	w.cur = nil
	w.pending++
}

// open begins a pack.
func (w *Writer) open() error {
	p := &Pack{ID: disk.NewPackID(w.Kind), end: HeadLen}
	p.Created = p.ID.Time().UnixNano()
	f, err := os.OpenFile(w.Files.Path(p)+disk.TmpExt, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("new pack: %w", err)
	}
	if _, err = f.WriteAt(Head(w.Sec, p.ID, p.Created), 0); err != nil {
		f.Close()
		os.Remove(f.Name()) // best effort: Open removes what stays
		return fmt.Errorf("new pack: %w", err)
	}
	if n := len(w.free); n > 0 {
		p.entries, w.free = w.free[n-1], w.free[:n-1]
	}
	p.file = w.Files.add(p, f)
	if w.Up != nil {
		p.upload = w.Up(p.ID, f)
	}
	w.cur = p
	w.Sink.Opened(p)
	return nil
}

// seal makes a detached pack durable and visible, or gives it up.
func (w *Writer) seal(p *Pack) {
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
		p.Sealed.Store(true)
		w.Sink.Sealed(p)
	}
	w.Files.release(p, p.file)
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

func (w *Writer) finish(p *Pack) error {
	foot := Footer(w.Sec, p.ID, Head(w.Sec, p.ID, p.Created), p.entries)
	f := p.file.f
	if _, err := f.WriteAt(foot, p.end); err != nil {
		return err
	}
	p.Size = p.end + int64(len(foot))
	if p.upload != nil {
		return w.send(p)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return disk.Publish(f.Name(), w.Files.Path(p))
}

// send ends the upload of a pack. The file stays as a cache, which need not be durable.
func (w *Writer) send(p *Pack) error {
	if err := p.upload.Finish(p.Size); err != nil {
		return err
	}
	if os.Rename(p.file.f.Name(), w.Files.Path(p)) == nil {
		w.Files.Cache.adopt(p, p.Size)
	}
	return nil
}

// discard gives up a pack that was not sealed.
func (w *Writer) discard(p *Pack, err error) {
	p.Dropped.Store(true)
	p.Gone.Store(true)
	w.Sink.Failed(p, err)
	if p.upload != nil {
		p.upload.Drop()
	}
	w.Files.forget(p)
	os.Remove(w.Files.Path(p) + disk.TmpExt) // best effort: Open removes what stays
	if !p.Sealed.Load() {
		os.Remove(w.Files.Path(p)) // published, but the folder would not sync
	}
}

// flush seals the current pack and waits until every pack is sealed or given up. Chunks
// appended before are then durable, or failed was called.
func (w *Writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cur != nil {
		w.retire()
	}
	for w.pending > 0 {
		w.idle.Wait()
	}
}
