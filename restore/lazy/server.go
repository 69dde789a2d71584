package lazy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/lazymem"
	"golang.org/x/sys/unix"
)

// server serves the pages of the processes of one restore.
type server struct {
	link  *link
	log   *logFile
	image *image.Reader // checks what it reads
	name  string        // of what is restored
	owner int
	rate  int64 // of the streams, bytes a second; 0: no bound

	faults atomic.Int64 // threads that wait for a page just now
	hurry  atomic.Bool  // somebody waits for the end
	turns  chan struct{}
	done   chan struct{} // closed when nothing is missing any more

	mu      sync.Mutex
	spaces  []*space // those that are not over
	pids    []int    // of all that were served, children too
	total   int64
	failed  int64 // of spaces that are over
	serving bool  // the processes run
}

// streams is how many processes are streamed to at the same time.
const streams = 2

func newServer(l *link, log *logFile) *server {
	return &server{link: l, log: log, turns: make(chan struct{}, streams), done: make(chan struct{})}
}

// logf tells of what went wrong.
func (s *server) logf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.log.trouble(text)
	s.link.tell(reply{Log: text})
}

// around is the part of the image that is brought with a page: whole chunks near it.
func (s *server) around(off int64) (from, to int64) {
	const near = 64 << 10
	_, mid := s.image.ChunkAt(off)
	from, to = mid.Off, mid.Off+int64(mid.Len)
	with := func(c image.Chunk) bool { return c.Region == mid.Region && c.Start/near == mid.Start/near }
	for n, c := s.image.ChunkAt(from - 1); n >= 0 && with(c); n, c = s.image.ChunkAt(from - 1) {
		from = c.Off
	}
	for n, c := s.image.ChunkAt(to); n >= 0 && with(c); n, c = s.image.ChunkAt(to) {
		to = c.Off + int64(c.Len)
	}
	return from, to
}

var buffers = sync.Pool{New: func() any { return new([streamLen]byte) }}

// buffer returns memory for at most streamLen bytes.
func (s *server) buffer(n int64) []byte { return buffers.Get().(*[streamLen]byte)[:n] }

func (s *server) release(b []byte) { buffers.Put((*[streamLen]byte)(b[:streamLen])) }

// turn waits until a stream may bring some more: not while threads wait for pages, unless they do so
// all the time.
func (s *server) turn() (done func()) {
	s.turns <- struct{}{}
	const most = 5 * time.Millisecond
	for waited := time.Duration(0); waited < most && s.faults.Load() > 0 && !s.hurry.Load(); waited += pause {
		time.Sleep(pause)
	}
	return func() { <-s.turns }
}

// slow takes the time that n bytes may take.
func (s *server) slow(n int64) {
	if s.rate <= 0 {
		return
	}
	const step = 20 * time.Millisecond // how long who begins to wait may take to be noticed
	for left := time.Duration(float64(n) / float64(s.rate) * float64(time.Second)); left > 0 && !s.hurry.Load(); left -= step {
		time.Sleep(min(left, step))
	}
}

// add takes a space over. The mu of another one may be held; s.mu is never held when one is taken.
func (s *server) add(sp *space) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spaces = append(s.spaces, sp)
	s.total += sp.total
	if pid := int(sp.pid.Load()); pid != 0 {
		s.pids = append(s.pids, pid)
	}
}

// forked takes over the child of a process that forks. Called with its mu held.
func (s *server) forked(parent *space, fd int) {
	child := newSpace(s, 0, -1, fd, parent.m.clone(), parent.huge)
	s.add(child)
	pid := int(parent.pid.Load())
	go func() {
		for _, w := range wiped(pid) {
			child.drop(w)
		}
		go s.identify(child, pid)
		go child.stream()
		child.serve()
	}()
}

// ended forgets a space. When the last one has ended, so has the work.
func (s *server) ended(sp *space) {
	sp.mu.Lock()
	failed := sp.failed
	sp.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spaces = slices.DeleteFunc(s.spaces, func(o *space) bool { return o == sp })
	s.failed += failed
	if failed > 0 {
		s.log.trouble(fmt.Sprintf("%s: %d bytes of its memory could not be had", sp.name(), failed))
	}
	if s.serving && len(s.spaces) == 0 {
		close(s.done)
	}
}

// begin brings everything: the processes run.
func (s *server) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = true
	for _, sp := range s.spaces {
		go sp.stream()
	}
	if len(s.spaces) == 0 {
		close(s.done)
	}
}

// status is what others are told.
func (s *server) status() lazymem.Status {
	s.mu.Lock()
	st := lazymem.Status{Server: os.Getpid(), Owner: s.owner, Name: s.name, Log: s.log.path, Total: s.total, Failed: s.failed,
		PIDs: []int{}, Done: s.serving && len(s.spaces) == 0}
	spaces := slices.Clone(s.spaces)
	s.mu.Unlock()
	for _, sp := range spaces {
		sp.mu.Lock()
		st.Missing += sp.m.bytes()
		st.Failed += sp.failed
		sp.mu.Unlock()
		if pid := int(sp.pid.Load()); pid != 0 {
			st.PIDs = append(st.PIDs, pid)
		}
	}
	slices.Sort(st.PIDs)
	return st
}

// spaceRuns are the parts of the image that belong into some VMAs of an address space.
func (s *server) spaceRuns(mm int, vmas []int) (runs []run, huge []span, err error) {
	m := s.image.Manifest
	if mm < 0 || mm >= len(m.MMs) {
		return nil, nil, fmt.Errorf("the image has no address space %d", mm)
	}
	for _, i := range vmas {
		if i < 0 || i >= len(m.MMs[mm].VMAs) {
			return nil, nil, fmt.Errorf("address space %d has no mapping %d", mm, i)
		}
		v := &m.MMs[mm].VMAs[i]
		for e, x := range v.Extents {
			runs = append(runs, run{x.Start, x.Len, s.image.VMAOffset(mm, i, e)})
			if v.THP {
				huge = addHuge(huge, x.Start, x.Start+x.Len)
			}
		}
	}
	return runs, huge, nil
}

// addHuge adds the huge pages that lie in a part of memory.
func addHuge(all []span, start, end uint64) []span {
	const size = 2 << 20
	start, end = (start+size-1)&^(size-1), end&^(size-1)
	for ; start < end; start += size {
		all = append(all, span{start, start + size})
	}
	return all
}

// logFile is the log of a server. It is removed in the end if nothing went wrong.
type logFile struct {
	path string
	mu   sync.Mutex
	f    *os.File
	bad  bool
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &logFile{path: path, f: f}, nil
}

// say writes a line.
func (l *logFile) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.f, "%s %s\n", time.Now().UTC().Format("2006/01/02 15:04:05"), strings.TrimSpace(text)) // nobody left to tell
}

// trouble writes a line that somebody should read.
func (l *logFile) trouble(text string) {
	l.say(text)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad = true
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.f.Close()
	if !l.bad {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

// keepOver makes a descriptor stay when the guard executes the program that ends the processes.
func keepOver(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	return err
}
