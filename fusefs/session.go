package fusefs

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// errReaderGone is why a checkpoint is given up whose reader closed before the end.
var errReaderGone = errors.New("the reader closed the file before the end")

// session is one checkpoint that is read while it is stored. Its size never changes; its
// bytes come from the running ingest and, after the commit, from the stored image.
type session struct {
	pid     int
	name    string // in images/
	size    int64
	created time.Time
	cancel  context.CancelCauseFunc
	ingest  *store.Ingest
	log     *lines
	base    atomic.Pointer[sharedReader] // the image it refers to; nil: none
	caught  chan struct{}                // the reader has read; nobody need take it

	mu       sync.Mutex
	pace     pace
	put      int64         // bytes the ingest has
	changed  chan struct{} // closed when put grows or the session ends; nil if nobody waits
	finished bool
	err      error // why it failed; valid when finished
	stored   *store.Reader
	readTo   int64 // how far the reader has read without a gap
	closed   bool  // the reader is gone
}

// lines collects the text of a log file.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) addf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.b, "%s %s\n", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

// add is addf for a line that is no format.
func (l *lines) add(s string) { l.addf("%s", s) }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lockTaking makes sure that only one tree is being frozen: two freezes at once would only
// be in each other's way.
func (f *filesystem) lockTaking(ctx context.Context) error {
	select {
	case f.taking <- struct{}{}:
		return nil
	case <-ctx.Done():
		if cause := context.Cause(ctx); cause != context.Canceled {
			return cause
		}
		return syscall.EINTR
	}
}

func (f *filesystem) unlockTaking() { <-f.taking }

// begin takes a checkpoint and starts to store it. ctx covers the checkpoint itself; the
// storing ends with the filesystem or by session.cancel.
func (f *filesystem) begin(ctx context.Context, id procID) (*session, error) {
	stored := f.settler.storing()
	s, err := f.beginStoring(ctx, id, stored)
	if err != nil {
		stored()
	}
	return s, err
}

// beginStoring is begin. If there is no error, stored is called when the storing ends.
func (f *filesystem) beginStoring(ctx context.Context, id procID, stored func()) (*session, error) {
	if err := f.lockTaking(ctx); err != nil {
		return nil, err
	}
	defer f.unlockTaking()
	s := &session{pid: id.pid, created: time.Now(), log: &lines{}, caught: make(chan struct{}, 1), pace: pace{begun: time.Now()}}
	held := f.frozen(id)
	cp, err := f.takeNow(ctx, id, s, held)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	s.size = cp.Size()
	sctx, cancel := context.WithCancelCause(f.ctx)
	s.cancel = cancel
	if err := f.beginIngest(sctx, s, cp.Manifest()); err != nil {
		cancel(nil)
		return nil, errors.Join(err, cp.Close())
	}
	s.log.addf("checkpoint of pid %d: %d processes, %d bytes, taken in %s", id.pid,
		len(cp.Manifest().Tasks), s.size, time.Since(s.created).Round(time.Microsecond))
	if held != nil {
		held.busy.Add(1)
	}
	f.streams.Go(func() {
		f.stream(sctx, s, cp)
		stored()
		if held != nil {
			held.busy.Done()
		}
	})
	return s, nil
}

// takeNow takes the checkpoint, of a tree that runs or one that is held frozen.
func (f *filesystem) takeNow(ctx context.Context, id procID, s *session, held *frozenTree) (Checkpoint, error) {
	o := TakeOptions{Log: s.log.add, Policy: f.policies.of(id)}
	if held != nil {
		return held.tree.Take(ctx, o)
	}
	o.Track = f.trackers.forTake(id, f.engine.NewTracker)
	return f.engine.Take(ctx, id.pid, o)
}

// beginIngest finds a free name COMM-PID-UTCTIME in the store.
func (f *filesystem) beginIngest(ctx context.Context, s *session, m *image.Manifest) error {
	comm := ""
	if len(m.Tasks) > 0 {
		comm = m.Tasks[0].Comm
	}
	series := seriesName(comm, s.pid)
	base := series + s.created.UTC().Format("-20060102T150405Z")
	s.name = base
	for i := 2; ; i++ {
		var err error
		s.ingest, err = f.store.Begin(ctx, s.name)
		if err == nil {
			s.ingest.SetSeries(series)
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		s.name = fmt.Sprintf("%s-%d", base, i)
	}
}

// seriesName is what the names of all images of a process begin with.
func seriesName(comm string, pid int) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '+' {
			return r
		}
		return '-'
	}, comm)
	if clean = strings.TrimLeft(clean, ".-"); clean == "" {
		clean = "process"
	}
	return fmt.Sprintf("%s-%d", clean, pid)
}

// stream brings the whole image into the store, however slow the reader is.
func (f *filesystem) stream(ctx context.Context, s *session, cp Checkpoint) {
	root, err := cp.Stream(ctx, &storeSink{s: s, ctx: ctx})
	err = errors.Join(err, cp.Close())
	if err == nil {
		err = f.attach(s, cp.Manifest(), root)
	}
	opened := f.collector.opening(s.name)
	if err == nil {
		err = s.ingest.Commit()
	} else {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // what was cancelled fails in ways that only hide the reason
		}
		err = errors.Join(err, s.ingest.Abort())
	}
	var r *store.Reader
	if err == nil {
		r, err = f.store.OpenImage(s.name)
	}
	s.standAlone()
	if err == nil {
		f.handOver(cp, s.name)
	}
	opened()
	s.cancel(nil)
	f.streamed(s, err)
	s.finish(r, err)
}

// streamed records how a stream ended.
func (f *filesystem) streamed(s *session, err error) {
	switch {
	case err == nil:
		f.logf("pid %d: checkpoint %s stored, %d bytes", s.pid, s.name, s.size)
		f.collector.look()
		f.remember(s.pid, func(r *record) { r.Last, r.Error = &lastCheckpoint{s.name, s.created, s.size}, nil })
	case errors.Is(err, errReaderGone):
		f.logf("pid %d: checkpoint given up: %v", s.pid, err)
		f.collector.garbage()
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.failed(s.pid, err)
		f.collector.noRoom()
	default:
		f.failed(s.pid, err)
		f.collector.garbage()
	}
}

// savedInfo is images/NAME/info as it is stored, see infoText.
type savedInfo struct {
	Name      string          `json:"name"`
	PID       int             `json:"pid"`
	Comm      string          `json:"comm"`
	Created   time.Time       `json:"created"`
	Size      int64           `json:"size"` // bytes
	Root      string          `json:"root"` // the image's identity
	Tool      string          `json:"tool"`
	Hostname  string          `json:"hostname"`
	Kernel    string          `json:"kernel"`
	Processes []savedProcess  `json:"processes"`
	Lost      []image.Finding `json:"lost"`
}

type savedProcess struct {
	PID     int32  `json:"pid"`
	PPID    int32  `json:"ppid"`
	Comm    string `json:"comm"`
	Threads int    `json:"threads"`
}

// attach puts info, log and manifest.json beside the image.
func (f *filesystem) attach(s *session, m *image.Manifest, root image.Hash) error {
	info := savedInfo{Name: s.name, PID: s.pid, Created: s.created.UTC(), Size: s.size, Root: hex.EncodeToString(root[:]),
		Tool: m.Tool, Hostname: m.Host.Hostname, Kernel: m.Host.Kernel, Lost: m.Lost}
	if info.Lost == nil {
		info.Lost = []image.Finding{} // "[]" and not "null" for scripts
	}
	for i := range m.Tasks {
		t := &m.Tasks[i]
		info.Processes = append(info.Processes, savedProcess{t.PID, t.PPID, t.Comm, len(t.Threads)})
	}
	if len(m.Tasks) > 0 {
		info.Comm = m.Tasks[0].Comm
	}
	for _, l := range m.Lost {
		s.log.add(l.String())
	}
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return fmt.Errorf("info of %s: %w", s.name, err)
	}
	s.ingest.Attach(infoName, append(b, '\n'))
	// The manifest is read back from what is stored: that also shows that it can be.
	r, err := image.Open(s.ingest, s.size)
	if err != nil {
		return fmt.Errorf("reading the image back from the store: %w", err)
	}
	var text bytes.Buffer
	if err := image.JSON(&text, r); err != nil {
		return fmt.Errorf("manifest of %s: %w", s.name, err)
	}
	s.ingest.Attach("manifest.json", text.Bytes())
	s.ingest.Attach("log", []byte(s.log.String()))
	return nil
}

// advance says that n more bytes can be read.
func (s *session) advance(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put += n
	s.wake()
}

// finish ends the session: everything is stored and read from r, or err says why not.
func (s *session) finish(r *store.Reader, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished, s.stored, s.err = true, r, err
	s.closeStored()
	s.wake()
}

func (s *session) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// read reads len(p) bytes at off, or what there is before the end of the image, and waits
// until they exist. A read that reaches the end waits until the image is stored.
func (s *session) read(ctx context.Context, p []byte, off int64) (fuse.ReadResult, error) {
	end := min(off+int64(len(p)), s.size)
	for {
		stored, err := s.await(ctx, end)
		if err != nil {
			return nil, err
		}
		if off >= end {
			return fuse.ReadResultData(nil), nil
		}
		var r gatherer = s.ingest
		if stored != nil {
			r = stored
		}
		res, err := gather(r, p[:end-off], off)
		if err == nil {
			s.wasRead(off, end)
			return res, nil
		}
		ended := errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrAborted) || errors.Is(err, store.ErrNotYet)
		if stored != nil || !ended {
			return nil, err
		}
		end = s.size // the ingest ended between the two: wait for the stored image, or the reason
	}
}

// await waits until the bytes before end exist, or all is stored if end is the size. It
// returns the stored image, if there is one already.
func (s *session) await(ctx context.Context, end int64) (*store.Reader, error) {
	for {
		s.mu.Lock()
		if s.finished || end < s.size && s.put >= end {
			defer s.mu.Unlock()
			return s.stored, s.err
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		ch := s.changed
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, syscall.EINTR // at once: the reader may be a task that is being frozen
		}
	}
}

func (s *session) wasRead(off, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off <= s.readTo {
		s.readTo, s.pace.last = max(s.readTo, end), time.Now()
		poke(s.caught)
	}
}

// complete reports whether everything is stored and the reader has read it all.
func (s *session) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finished && s.err == nil && s.readTo == s.size
}

// close ends the session for its reader: a stream that still runs is given up.
func (s *session) close() {
	s.cancel(errReaderGone)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.closeStored()
}

// closeStored closes the stored image if there is one and nobody reads it any more: the reader may go before the commit
// has ended, which nothing can stop then. Called with mu held.
func (s *session) closeStored() {
	if s.closed && s.stored != nil {
		_ = s.stored.Close() // only read
	}
}
