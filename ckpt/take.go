package ckpt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// After says what becomes of the tree once its image is complete.
type After int

// The ways a checkpoint can end for the tree.
const (
	Resume After = iota // it runs on; it was only still for the freeze
	Stop                // it is left stopped, as by SIGSTOP
	Kill                // it is killed
)

// DefaultTimeout is how long a tree may take to come to a stop.
const DefaultTimeout = 10 * time.Second

// Options of Take. The zero value leaves the tree running.
type Options struct {
	Timeout time.Duration // for the freeze; 0: DefaultTimeout
	After   After
	Version string       // of the writer, for Manifest.Tool
	Log     func(string) // a line for NAME.log; may be nil
	Steps   *steplog.Log // gets a line about each step; may be nil
	Policy  policy.Set   // what was chosen, and goes into the image; may be nil
	Track   *Tracker     // follows what is written between the checkpoints of this tree; may be nil, and counts with Resume only

	policies bool      // ask about the NUMA policies of mappings
	apart    bool      // ask each thread by itself: a test compares
	run      *trackRun // of Track; nil: there is none
}

// Checkpoint is a checkpoint whose state is captured and whose pages wait to be streamed.
// Its methods are for one goroutine; Close must be called in the end.
type Checkpoint struct {
	o         Options
	op        *steplog.Op
	m         image.Manifest
	layout    *image.Layout
	head      []byte
	checked   chan error // gets one: whether head decodes to m again
	procs     []*proc    // those with memory, in the order of m.MMs
	segs      *segments
	shm       []sysv.Shm // all shared memory of System V, as it was before we did anything
	blobs     [][]byte
	ttys      map[int32]int        // by pid: tty_nr of its controlling terminal
	refs      map[int]image.ObjRef // by pid: the place of its records
	tables    *tables              // whose descriptor tables there are
	dirs      map[int]int          // by pid: with whom it shares cwd, root and umask
	sleepers  *sleepers
	tr        *tracers
	ownTracer bool       // Close ends them
	ownRun    bool       // and what was needed for the tracking of writes
	undo      *undoStack // what lets a tree go that stays frozen
	logging   sync.Mutex
	reading   sync.WaitGroup // the goroutine that reads the files
	same      []*window      // by number of the chunk: the one of the checkpoint before that is the same; nil: all are new
	reused    int64          // bytes of them
	basis     *base          // what the next checkpoint may take from this one
	streamed  bool
	frozen    bool          // somebody else holds the tree still, and ends that
	lock      *netlock.Lock // of TCP connections, until the tree goes on or is restored
	Pause     time.Duration // how long the tree was still; 0 while it still is
}

// log says something for NAME.log. The files are captured beside the rest, so it may be
// called by two goroutines.
func (c *Checkpoint) log(format string, args ...any) {
	c.logging.Lock()
	defer c.logging.Unlock()
	if c.o.Log != nil {
		c.o.Log(fmt.Sprintf(format, args...))
	}
}

// snapshots reports whether the tree runs on while its memory is read.
func (c *Checkpoint) snapshots() bool { return c.o.After == Resume }

// Take freezes the tree below pid, captures it and lets it go on. When it returns the tree
// has run on for a while already (with After Resume) and the size of the image is known.
// Errors: *TargetError, *image.RefusedError, the timeout and gone errors of package ptrace.
// After any error the tree runs as before.
func Take(ctx context.Context, pid int, o Options) (*Checkpoint, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	raiseNoFile()
	if o.Track != nil && o.After == Resume {
		o.run = o.Track.begin()
	}
	c, err := takeSteady(ctx, pid, o)
	if err != nil {
		o.run.end()
		return nil, err
	}
	c.ownRun = true
	return c, nil
}

func take(ctx context.Context, pid int, o Options) (*Checkpoint, error) {
	op := o.Steps.Begin("dump")
	s, err := lookAccepted(ctx, op, pid, o)
	if err != nil {
		return nil, err
	}
	c := newCheckpoint(o, op, newTracers(len(s.procs)))
	c.ownTracer = true
	if c.m.Host, err = hostInfo(s.root); err != nil {
		return c.complete(s, err)
	}
	c.prepareTracking(ctx, s)
	c.sleepers = findSleepers(s.pids())
	err = c.tr.Do(func() error { return c.still(ctx, s) })
	return c.complete(s, opened(err))
}

// lookAccepted looks at a tree and fails if anything in it is refused. A vfork(2) is left to
// the freeze, which can wait for its end, and so are descriptors that were not there a moment ago.
func lookAccepted(ctx context.Context, op *steplog.Op, pid int, o Options) (s *survey, err error) {
	step := op.Step("look", pid)
	defer func() { step.End(err) }()
	pids, err := Tree(pid)
	if err == nil {
		err = refuseSelf(pid, pids)
	}
	if err == nil {
		err = awaitMemory(ctx, pids, o.Log)
	}
	if err == nil {
		s, err = steadyLook(pid, o.Policy)
	}
	if err != nil {
		return nil, err
	}
	step.Count("processes", int64(len(s.procs)))
	s.findings = slices.DeleteFunc(s.findings, func(f image.Finding) bool { return f.Kind == vforkKind || s.fleeting(f) })
	return s, image.Refusals(s.findings)
}

func newCheckpoint(o Options, op *steplog.Op, tr *tracers) *Checkpoint {
	return &Checkpoint{o: o, op: op, undo: &undoStack{op: op}, tr: tr, segs: newSegments(), refs: map[int]image.ObjRef{}, ttys: map[int32]int{}}
}

// complete ends a capture, or cleans up after one that failed.
func (c *Checkpoint) complete(s *survey, err error) (*Checkpoint, error) {
	if err == nil {
		step := c.op.Step("layout", s.root)
		if err = c.finishManifest(s); err == nil {
			step.Count("bytes", c.layout.Total)
		}
		step.End(err)
	}
	if err != nil {
		if cerr := c.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return nil, err
	}
	return c, nil
}

// still is everything that happens while a tree is frozen that runs on afterwards, or that
// stays frozen only for this checkpoint.
func (c *Checkpoint) still(ctx context.Context, s *survey) error {
	defer c.tr.hurry()()
	undo := &undoStack{op: c.op}
	of := c.tr.divide(s.pids(), s.weight)
	start := time.Now()
	procs, err := freezeTree(ctx, c.tr, of, s.root, time.Now().Add(c.o.Timeout), undo)
	if err == nil {
		err = c.captureAll(ctx, s, procs, undo)
	}
	if err != nil || c.o.After == Resume {
		uerr := c.op.Do("resume", s.root, undo.run)
		c.Pause = time.Since(start)
		c.log("pid %d: %d processes were still for %.1f ms", s.root, len(procs), float64(c.Pause.Microseconds())/1000)
		return join(err, uerr)
	}
	c.undo = undo
	return nil
}

// captureAll captures a tree that is frozen.
func (c *Checkpoint) captureAll(ctx context.Context, s *survey, procs []*proc, undo *undoStack) error {
	procs = slices.Clone(procs)
	for i, p := range procs { // copies: a tree that is held frozen may be captured again
		q := *p
		q.looked, q.mem, q.remote, q.alike, q.track = s.find(p.pid), memory{}, nil, nil, c.o.run.of(&p.stat)
		procs[i] = &q
	}
	c.m.Created = now()
	c.m.Host.Monotonic, c.m.Host.Boottime = clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_BOOTTIME)
	if err := c.capture(s, procs, undo); err != nil {
		return err
	}
	if !c.snapshots() {
		for _, p := range c.procs {
			p.mem.live = p.remote.Mem()
		}
	}
	return ctx.Err()
}

// join is errors.Join that leaves a single error as it is.
func join(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

// find returns the look at a process, or nil.
func (s *survey) find(pid int) *looked {
	for _, l := range s.procs {
		if l.pid == pid {
			return l
		}
	}
	return nil
}

// Size is the exact size of the image in bytes.
func (c *Checkpoint) Size() int64 { return c.layout.Total }

// Manifest is the image's manifest. It must not be changed.
func (c *Checkpoint) Manifest() *image.Manifest { return &c.m }

// Lost lists what a restore of this checkpoint will not bring back.
func (c *Checkpoint) Lost() []image.Finding { return c.m.Lost }

// Finish carries out After, once the stream was complete: with Kill every process of the
// tree gets SIGKILL, with Stop the tree gets SIGSTOP and is let go. With Resume it does
// nothing.
func (c *Checkpoint) Finish() error {
	if !c.streamed {
		return errors.New("the image is not complete; the tree is left running")
	}
	if c.o.After == Resume {
		return nil
	}
	sig := unix.SIGSTOP
	if c.o.After == Kill {
		sig = unix.SIGKILL
		if err := c.lock.Hold(); err != nil {
			return fmt.Errorf("keep the TCP connections of the image until its restore: %w; the tree is left running", err)
		}
		c.lock = nil
	}
	return c.tr.Do(func() error {
		var errs []error
		for _, p := range c.procs {
			if err := unix.Kill(p.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("pid %d: signal %v: %w", p.pid, sig, err))
			}
		}
		err := c.undo.run()
		if c.o.After == Kill {
			err = nil // they are dead: there is nothing left to undo
			errs = append(errs, c.waitDead())
		}
		return errors.Join(append(errs, err)...)
	})
}

// hush keeps the packets of TCP connections away as long as the tree stands still.
func (c *Checkpoint) hush(conns []netlock.Conn) (err error) {
	c.lock, err = netlock.Take(conns)
	return err
}

// waitDead waits until every process of the tree has ended, so that whoever comes next finds
// no more than zombies. Those are for their parents to reap.
func (c *Checkpoint) waitDead() error {
	deadline := time.Now().Add(c.o.Timeout)
	for _, p := range c.procs {
		for {
			st, err := readStat(p.pid)
			if err != nil || st.State == 'Z' || st.State == 'X' || st.StartTime != p.stat.StartTime {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("pid %d got SIGKILL and has not ended yet: state %c", p.pid, st.State)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// Close ends the checkpoint: a tree that is still frozen goes on, snapshots are killed,
// memory is given back. It may be called at any time and twice.
func (c *Checkpoint) Close() error {
	if c.tr == nil {
		return nil
	}
	err := c.tr.Do(func() error { return errors.Join(c.undo.run(), c.dropSnapshots()) })
	err = errors.Join(err, c.lock.Back())
	c.lock = nil
	if c.ownTracer {
		c.tr.Close()
	}
	c.tr = nil
	for _, p := range c.procs {
		p.mem.free()
	}
	if c.ownRun {
		c.o.run.end()
	}
	go func() { // a filesystem that does not answer must not hold us up, now that the tree runs
		c.reading.Wait()
		c.segs.free()
	}()
	return err
}

// dropSnapshots kills the copies, each by its own tracer.
func (c *Checkpoint) dropSnapshots() error {
	return c.tr.each(func(t *ptrace.Tracer) error {
		var errs []error
		for _, p := range c.procs {
			if p.tr == t && p.mem.snap != nil {
				errs = append(errs, p.mem.snap.Close())
				p.mem.snap = nil
			}
		}
		return errors.Join(errs...)
	})
}

// raiseNoFile lifts our soft limit of open files: a tree may have more than the 1024 that a
// shell hands down, and each description is held here for a moment.
func raiseNoFile() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // then EMFILE says what is missing
	}
}

// pageSize is the size of a page in bytes.
var pageSize = uint64(os.Getpagesize())
