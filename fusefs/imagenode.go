package fusefs

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// reader is a process that looks at the image of another one.
type reader struct {
	target procID
	tgid   int
}

// imageNode is ckpt/PID/image as one calling process sees it. All callers see the same inode
// number but have nodes of their own, told apart by the generation.
type imageNode struct {
	fs.Inode
	f        *filesystem
	key      reader
	gen      uint64
	uid, gid uint32 // under mu

	mu       sync.Mutex
	born     time.Time // st_mtime: the same from the first look until the last close
	estimate int64
	asked    time.Time // when the estimate was made
	session  *session  // nil: no checkpoint is open
	handles  int       // open handles, with or without a session
	starting chan struct{}
}

// imageHandle is an open image. It has a session, or gets one at the first READ.
type imageHandle struct {
	n *imageNode
}

// image returns the node of the image of p for the caller.
func (f *filesystem) image(p *process, tgid int) *imageNode {
	key := reader{procID{p.pid, p.start}, tgid}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.imageOf[key]
	if n == nil {
		n = &imageNode{f: f, key: key, gen: f.gen.Add(1)}
		f.imageOf[key] = n
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.uid, n.gid = p.uid, p.gid
	return n
}

// OnForget drops the node when the kernel has. It stays if it came back to life meanwhile.
func (n *imageNode) OnForget() {
	n.mu.Lock()
	inUse := n.handles > 0
	n.mu.Unlock()
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	if !inUse && n.f.imageOf[n.key] == n {
		delete(n.f.imageOf, n.key)
	}
}

func (n *imageNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// attr says the exact size while a checkpoint is open and an estimate otherwise.
func (n *imageNode) attr(a *fuse.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.born.IsZero() {
		n.born = time.Now()
	}
	size := n.estimate
	switch {
	case n.session != nil:
		size = n.session.size
	case time.Since(n.asked) > time.Second:
		size = n.ask()
	}
	setAttr(a, 0o400, size, n.uid, n.gid, n.born)
}

// minEstimate stands in for an estimate that cannot be had. It is not 0, since tools copy
// nothing of an empty file and then never see the error that open would have told them.
const minEstimate = 1 << 20

func (n *imageNode) ask() int64 {
	size, err := n.f.engine.Estimate(n.key.target.pid)
	if err != nil || size < minEstimate {
		size = minEstimate
	}
	n.estimate, n.asked = size, time.Now()
	return size
}

// userOpen is O_LARGEFILE, which the kernel adds to every open of a 64-bit program. The
// kernel's own opens, for FS_IOC_GETFLAGS, do not have it, and borg makes one per file.
const userOpen = 0x8000

// Open takes the checkpoint.
func (n *imageNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	h := &imageHandle{n}
	n.mu.Lock()
	n.handles++ // before start, so that no Release meanwhile ends the session
	n.mu.Unlock()
	if flags&userOpen != 0 {
		if _, err := n.start(ctx); err != nil {
			h.Release(ctx)
			return nil, 0, errno(err)
		}
	}
	return h, fuse.FOPEN_DIRECT_IO, 0
}

// start returns the session of this node, beginning one if there is none. Opens that overlap
// share it: the size is a property of the inode, so there can only be one.
func (n *imageNode) start(ctx context.Context) (*session, error) {
	for {
		n.mu.Lock()
		s, wait := n.session, n.starting
		if s == nil && wait == nil {
			n.starting = make(chan struct{})
		}
		n.mu.Unlock()
		switch {
		case s != nil:
			return s, nil
		case wait == nil:
			return n.startNow(ctx)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, syscall.EINTR
		}
	}
}

func (n *imageNode) startNow(ctx context.Context) (*session, error) {
	s, err := n.checkpoint(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session = s
	close(n.starting)
	n.starting = nil
	return s, err
}

// checkpoint makes sure that nobody is frozen who has to finish this very call, and then
// takes the checkpoint.
func (n *imageNode) checkpoint(ctx context.Context) (*session, error) {
	if err := n.allowed(ctx); err != nil {
		n.f.failed(n.key.target.pid, err)
		return nil, err
	}
	tctx, done := n.f.untilCallerLeaves(ctx)
	defer done()
	s, err := n.f.begin(tctx, n.key.target)
	switch {
	case errors.Is(err, syscall.EINTR):
		n.f.logf("pid %d: checkpoint given up: its reader was interrupted", n.key.target.pid)
	case err != nil:
		n.f.failed(n.key.target.pid, err)
	}
	return s, err
}

// allowed refuses what cannot end well.
func (n *imageNode) allowed(ctx context.Context) error {
	id := n.key.target
	p, err := readProcess(id.pid)
	if err != nil {
		return err
	}
	if p.start != id.start {
		return failf(syscall.ESRCH, "process %d has ended; another one has its number now", id.pid)
	}
	if p.flags&pfKthread != 0 {
		return failf(syscall.EOPNOTSUPP, "process %d (%s) is a kernel thread: it has no state that could be kept", id.pid, p.comm)
	}
	return n.f.refuseDeadlock(ctx, id.pid)
}

// refuseDeadlock fails if the caller, or this process, is in the tree below pid: it would be
// stopped and then could not go on with what the stopping waits for.
func (f *filesystem) refuseDeadlock(ctx context.Context, pid int) error {
	tree, err := f.engine.Tree(pid)
	if err != nil {
		return err
	}
	_, tgid := caller(ctx)
	switch {
	case tgid == 0:
		return failf(syscall.EPERM, "the caller lives in a pid namespace that cannot be seen from here; read the image from the namespace of the mount")
	case slices.Contains(tree, tgid):
		return failf(syscall.EDEADLK, "process %d is part of the tree below %d and would stop itself; read the image from outside the tree, for example from another terminal or by setsid", tgid, pid)
	case slices.Contains(tree, os.Getpid()):
		return failf(syscall.EDEADLK, "the tree below %d contains process %d, which serves this mount", pid, os.Getpid())
	}
	return nil
}

// deadlockGrace is how long an OPEN goes on whose caller is being checkpointed itself. Most
// are through by then, and the freeze of the caller has not timed out yet.
const deadlockGrace = 300 * time.Millisecond

// untilCallerLeaves returns a context that ends when the caller really wants to: an
// interrupt also comes from a signal that nobody feels and from ptrace, and the first alone
// is told, so from then on the caller's pending signals are watched. Call the function that
// it returns when the work is over.
func (f *filesystem) untilCallerLeaves(ctx context.Context) (context.Context, func()) {
	tctx, cancel := context.WithCancelCause(f.ctx)
	over := make(chan struct{})
	c, ok := fuse.FromContext(ctx)
	if ok {
		tctx = fuse.NewContext(tctx, c)
		go func() {
			select {
			case <-ctx.Done():
				if err := watch(int(c.Pid), over); err != nil {
					cancel(err)
				}
			case <-over:
			}
		}()
	}
	return tctx, func() { close(over); cancel(nil) }
}

// watch returns why thread tid wants what it waits for to end, or nil when that is over.
func watch(tid int, over <-chan struct{}) error {
	for traced := time.Duration(0); ; traced += watchStep {
		p, err := readProcess(tid)
		switch {
		case err != nil, p.wantsOut():
			return syscall.EINTR
		case !p.tracedByUs():
			traced = 0
		case traced > deadlockGrace:
			return failf(syscall.EDEADLK, "process %d, which waits for this, is being checkpointed itself", p.tgid)
		}
		select {
		case <-over:
			return nil
		case <-time.After(watchStep):
		}
	}
}

// watchStep is how often the caller of a slow OPEN is looked at once it was interrupted.
const watchStep = 20 * time.Millisecond

// Read follows the checkpoint.
func (h *imageHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	s, err := h.n.start(ctx)
	if err != nil {
		return nil, errno(err)
	}
	res, err := s.read(ctx, dest, off)
	if err == syscall.EINTR { // the caller's own interrupt: it comes back if it wants to
		return nil, syscall.EINTR
	}
	if err != nil {
		return nil, neverEINTR(errno(err))
	}
	if s.complete() {
		h.n.f.wasRead(h.n.key)
	}
	return res, 0
}

// Release gives the checkpoint up if nobody has it open any more and it is not stored yet.
// The next stat is an estimate again.
func (h *imageHandle) Release(context.Context) syscall.Errno {
	n := h.n
	n.mu.Lock()
	n.handles--
	var s *session
	if n.handles == 0 {
		s, n.session, n.born, n.asked = n.session, nil, time.Time{}, time.Time{}
	}
	n.mu.Unlock()
	if s != nil {
		s.close()
	}
	return 0
}
