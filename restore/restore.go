// Package restore brings the processes of an image back to life.
//
// How it goes:
//
//  1. Everything that can be checked is checked (check.go): this machine and its kernel, who
//     asks, mapped and open files, and that the ids of all processes and threads are free.
//  2. Every file is opened once, here, with the filesystem credentials of the user it belongs
//     to (files.go), and put by (depot.go). Shared memory is made and filled (segments.go),
//     deleted files that are mapped or executed among it (gone.go).
//  3. A stub, a static program of a few bytes linked at an address that is free in all address
//     spaces of the image (hole.go, stub_amd64.go), is started and seized. It is the seed: the
//     tree of processes grows from it by clone3(2) with set_tid (plan.go, tree.go), so every
//     process begins as a copy of the stub. Sessions get their terminals (terminal.go). Objects of
//     System V are made by those who had made them (sysv.go).
//  4. In each process everything but the stub's own memory is unmapped, and the vdso, then
//     every VMA is mapped at its place and filled (mem.go, fill.go). The files are sent over
//     to their numbers (pass.go, inject.go), and the rest of its state is set (state.go).
//  5. Threads are cloned; before the files are sent if some are about processes or threads and
//     can only be opened now (late.go). Then file locks are taken (locks.go), credentials and
//     timers come last (finish.go), the stub's memory is unmapped, and what stands there now is
//     compared with the image (verify.go).
//  6. When all of them are ready, all get their registers and are let go.
//
// Restores of an image that has a Template share its memory: then 3 and 4 begin with copies of that.
//
// Every process is traced with PTRACE_O_EXITKILL until the end. On any error, or if we die,
// all of them are killed, and nothing else has changed.
package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
	"golang.org/x/sys/unix"
)

// DefaultTimeout is used when Options.Timeout is 0.
const DefaultTimeout = 60 * time.Second

// Run restores the processes of an image, which must have been verified. When it returns
// without an error they run. Errors that a user can do something about: *PIDTakenError,
// *FileError, *HostError, *AccessError; also *ImageError, ErrTimeout and that of ctx.
func Run(ctx context.Context, r *image.Reader, o Options) (*Result, error) {
	j := newJob(r, o)
	defer j.close()
	ctx, cancel := context.WithDeadline(ctx, j.deadline)
	defer cancel()
	if t := o.Template; t != nil {
		ok, err := t.use(ctx)
		if err != nil {
			return nil, err
		}
		if ok {
			defer t.giveBack()
		} else {
			j.opt.Template = nil
		}
	}
	err := j.startLazy()
	if err == nil {
		err = j.run(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w (the limit was %v): %w", ErrTimeout, j.opt.Timeout, err)
	}
	if err != nil {
		for _, undo := range j.undos {
			if uerr := undo(); uerr != nil {
				j.log("giving up: %v", uerr)
			}
		}
		return nil, err
	}
	return j.result(), nil
}

// job is one restore.
type job struct {
	r        *image.Reader
	m        *image.Manifest
	opt      Options
	op       *steplog.Op
	deadline time.Time
	warnings []string
	warning  sync.Mutex // guards them: files are opened at the same time

	undos    []func() error // what files have made that a failed restore must not leave
	lasts    []func() error // what files do when the tree is whole
	env      *kind.Env
	depot    *depot                // m.Files that are open and that no process has yet
	ttys     map[image.ObjRef]int  // our descriptors of the terminals of sessions, and of kind.Apart files
	peers    map[image.ObjRef]int  // of those that are masters: our descriptors of their slaves
	cwds     map[image.ObjRef]int  // our descriptors of working directories that were deleted, by FS
	users    []fileUser            // who opens which files
	holder   map[image.ObjRef]slot // where each file is found first
	sysv     map[image.ObjRef]*sysvSegment
	ipc      []*object               // semaphore sets and message queues
	standIns int                     // processes that stood for those that used them last
	segs     []int                   // our descriptors of m.Segments, for reading and writing
	lockers  func() (lockers, error) // what other processes lock, as it was when a file with locks was opened first
	readable map[image.ObjRef]int    // and those that can only be read, for mappings that could not be written
	mapped   map[mapKey]int          // our descriptors of mapped files

	hole    hole
	channel [2]int // our end, the stubs' end
	tr      *ptrace.Tracer
	procs   []*proc // every process that was made and has not been let go or ended
	byNode  map[int]*proc
	blocked chan error       // tells when a guarded step that was given up returns
	pages   *pages           // what is lazy; nil: nothing is
	xstates map[int32][]byte // the XSTATE regset of each thread as this machine has it, by tid

	tmpl        *Template     // nil: all memory is copied
	standBy     *proc         // see templatenext.go; nil: none
	lent        map[int][]int // which of its areas each node is born with
	sharedBytes uint64
}

func newJob(r *image.Reader, o Options) *job {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	j := &job{r: r, m: r.Manifest, opt: o, op: o.Steps.Begin("restore"), deadline: time.Now().Add(o.Timeout + copyTime(r.Manifest)), channel: [2]int{-1, -1},
		depot: newDepot(), ttys: map[image.ObjRef]int{}, peers: map[image.ObjRef]int{}, cwds: map[image.ObjRef]int{}, mapped: map[mapKey]int{}, readable: map[image.ObjRef]int{}, byNode: map[int]*proc{}}
	j.lockers = sync.OnceValues(findLockers)
	j.env = &kind.Env{Manifest: j.m, Blob: r.Blob, Segment: j.segment, Out: j.openOut, Warn: j.warn, Shared: map[string]any{}, Help: j.mayHelp(),
		Undo: func(f func() error) { j.undos = append(j.undos, f) }, Last: func(f func() error) { j.lasts = append(j.lasts, f) }}
	return j
}

// copyTime is how long copying the memory of an image may take on a slow disk.
func copyTime(m *image.Manifest) time.Duration {
	const perSecond = 32 << 20
	bytes := uint64(0)
	for i := range m.MMs {
		bytes += storedBytes(&m.MMs[i])
	}
	for i := range m.Segments {
		for _, e := range m.Segments[i].Extents {
			bytes += e.Len
		}
	}
	return time.Duration(bytes/perSecond) * time.Second
}

// run takes the steps of the package comment.
func (j *job) run(ctx context.Context) error {
	if len(j.m.Tasks) == 0 {
		return &ImageError{0, "it holds no process"}
	}
	if j.m.Tasks[0].State == image.TaskZombie {
		return &ImageError{int(j.m.Tasks[0].PID), "the root of the tree has exited, so there is nothing to restore"}
	}
	chosen, err := policy.Parse(j.m.Policies)
	if err != nil {
		return &ImageError{0, fmt.Sprintf("this version does not know one of its policies: %v; a newer ckptfs may restore it", err)}
	}
	j.env.Policy = j.opt.Policy.Over(chosen)
	if err := checkSharing(j.m); err != nil {
		return err
	}
	if err := checkOwnTables(j.m); err != nil {
		return err
	}
	if err := checkRingMaps(j.m); err != nil {
		return err
	}
	if err := j.checkLockers(); err != nil {
		return err
	}
	j.planFiles()
	if err := j.planTerminals(); err != nil {
		return err
	}
	if err := j.step("check", func() error {
		return j.guard(ctx, "checking", func() error { return j.checkAll(ctx, j.deadline) })
	}); err != nil {
		return err
	}
	at, err := pickHole(j.m.MMs, holeLen)
	if err != nil {
		return err
	}
	j.hole = hole(at)
	own, err := ownIDs()
	if err != nil {
		return err
	}
	p, err := planTree(j.m.Tasks, own)
	if err != nil {
		return err
	}
	step := j.op.Step("open", j.root()).Count("files", int64(len(j.m.Files))).Count("segments", int64(len(j.m.Segments)))
	err = j.guard(ctx, "opening its files", j.openAll)
	if step.End(err); err != nil {
		return err
	}
	j.log("checked: %d processes, %d open files", len(j.m.Tasks), len(j.m.Files))
	j.tr = j.tracer()
	j.borrow(p)
	err = j.tr.Do(func() error {
		defer j.tr.Lend()()
		err := j.build(ctx, p)
		if err != nil {
			_ = j.step("undo:kill", func() error { j.killAll(); j.closeSysV(); j.dropSysV(); j.dropIPC(); return nil })
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, w := range p.warnings {
		j.warn("%s", w)
	}
	return nil
}

// guard runs f, which looks at or opens files, and gives up waiting when the time is over: a
// network filesystem can block for ever. What f has opened by then is closed when it returns.
func (j *job) guard(ctx context.Context, doing string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		j.blocked = done
		return fmt.Errorf("restore: %s: %w", doing, ctx.Err())
	}
}

// build makes the processes and lets them go. It runs on the tracing thread.
func (j *job) build(ctx context.Context, p *plan) error {
	step := j.op.Step("tree", j.root()).Count("processes", int64(len(j.m.Tasks)))
	err := j.plant()
	if err == nil {
		err = j.grow(ctx, p)
	}
	if step.End(err); err != nil {
		return err
	}
	j.log("made %d processes", len(j.m.Tasks))
	alive := j.alive()
	if err := j.makeSysV(); err != nil {
		return err
	}
	if err := j.each("memory", alive, func(p *proc) error { return j.buildMemory(ctx, p) }); err != nil {
		return err
	}
	j.log("restored memory")
	if j.tmpl != nil {
		j.log("%d MiB of memory are shared with the template", j.sharedBytes>>20)
	}
	if err := j.step("seal", j.sealSegments); err != nil {
		return err
	}
	if err := j.buildStates(ctx, alive); err != nil {
		return err
	}
	j.log("restored files and threads")
	if err := j.finish(alive); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for _, last := range j.lasts {
		if err := last(); err != nil {
			return err
		}
	}
	if err := j.leaveToServer(ctx, alive); err != nil {
		return err
	}
	return j.step("go", func() error { return j.letGo(alive) })
}

// root is the pid of the tree's root.
func (j *job) root() int { return int(j.m.Tasks[0].PID) }

// step runs f as a step about the whole tree.
func (j *job) step(name string, f func() error) error { return j.op.Do(name, j.root(), f) }

// each runs a step for every process before the next step begins.
func (j *job) each(name string, ps []*proc, f func(p *proc) error) error {
	return eachProc(ps, func(p *proc) error {
		step := j.op.Step(name, p.pid).Count("threads", int64(len(p.task.Threads)))
		if step != nil {
			mm := &j.m.MMs[p.task.MM-1]
			step.Count("vmas", int64(len(mm.VMAs))).Count("fds", int64(len(j.table(p)))).Count("bytes", int64(storedBytes(mm)))
		}
		err := f(p)
		step.End(err)
		return err
	})
}

// table is the descriptor table of a process.
func (j *job) table(p *proc) []image.FD { return j.m.FDTables[p.task.Threads[0].FDTable-1].FDs }

// storedBytes is how much of an address space the image holds.
func storedBytes(mm *image.MM) (n uint64) {
	for i := range mm.VMAs {
		n += stored(&mm.VMAs[i])
	}
	return n
}

func (j *job) result() *Result {
	res := &Result{Root: int(j.m.Tasks[0].PID), Warnings: j.warnings, Lost: j.m.Lost,
		Shared: int64(j.sharedBytes), Lazy: j.pages.bytes(), PageServer: j.pages.server()}
	for i := range j.m.Tasks {
		res.PIDs = append(res.PIDs, int(j.m.Tasks[i].PID))
	}
	return res
}

// close gives everything back that is ours.
func (j *job) close() {
	if j.tr != nil && j.opt.Template == nil { // else it is the template's
		j.tr.Close()
	}
	j.pages.close()
	for _, fd := range j.channel {
		closeFD(fd)
	}
	j.closeSysV()
	if j.blocked != nil {
		go func() {
			<-j.blocked
			j.closeFiles()
		}()
		return
	}
	j.closeFiles()
}

func (j *job) log(format string, args ...any) {
	if j.opt.Log != nil {
		j.opt.Log(fmt.Sprintf(format, args...))
	}
}

// warn records what is not quite as it was, each sentence once: a check and the opening of a
// file say the same.
func (j *job) warn(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	j.warning.Lock()
	defer j.warning.Unlock()
	for _, w := range j.warnings {
		if w == s {
			return
		}
	}
	j.warnings = append(j.warnings, s)
}

// closeFD closes a descriptor of ours, if it is one. What it was open for has been done or
// given up, so its error tells nothing.
func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
