package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// A Template holds the private memory of an image ready in a process of its own, so that every restore of the
// image shares it copy-on-write: nothing is read and copied, only page tables are.
//
// Private mappings of a memory file would be simpler and are not faithful: maps shows them as files,
// MADV_DONTNEED gives the file's content instead of zeros, MADV_FREE is refused, and huge pages are others.
// A copy-on-write copy of anonymous memory is anonymous memory, and only fork(2) makes one:
//
//  1. The template is a stub (see the package comment) that is never let go. It is stopped by ptrace(2) with
//     PTRACE_O_EXITKILL for as long as it lives, so it needs no care and dies with us, whatever kills us.
//  2. It has the large anonymous VMAs of all processes of the image (templateplan.go), mapped and filled as a restore
//     does it (templatefill.go): those of the root where they belong, of others there or, if that is taken, elsewhere.
//  3. Two processes stand by (templatenext.go): the seed of the next restore, made by a clone(2) that shares the
//     template's memory, so that nothing is copied, and a child that it has forked. The page tables are copied
//     then, while nobody waits.
//  4. A restore (fromtemplate.go) has that child make the root by a clone(2) with CLONE_VM and CLONE_PARENT, and
//     end: what it had is the root's alone, and the root a child of the seed as ever. The root hands on
//     what its own children need by MADV_DOFORK and MADV_DONTFORK, so that page tables are copied
//     once for each process on the way.
//  5. When the tree stands each process unmaps what was for others and moves what is not in its place (mremap(2)).
//     The rest of its memory is mapped and filled as ever, and verified as ever.
//
// Shared memory, files and what is locked are not in the template. Memory that is shared acts as that of any process after
// fork(2): its pages are the process's own from the first write on, and the kernel joins no new mapping to such a VMA
// (Linux 6.18), so mremap(2) does not reach over both. That is why a template is made when somebody asks for it and not by itself.
type Template struct {
	busy   chan struct{} // holds a token while somebody uses it
	closed chan struct{} // closed when nobody may any more
	tr     *ptrace.Tracer
	proc   *proc
	pidfd  int
	hole   hole
	root   image.Hash
	xstate []byte // of a thread that has done nothing yet, see job.checkRegisters
	areas  []templateArea
	bytes  uint64
	want   map[int]bool // ids that the image needs
	next   *next        // nil: nothing stands by
}

// templateName is the name of the process that a template is, as ps shows it: of at most 15 bytes.
const templateName = "ckptfs-template"

// templateOOM is its oom_score_adj: it can be made anew, so it is to be killed before others.
const templateOOM = 900

// ErrNoTemplate says that an image has no memory that a template could share.
var ErrNoTemplate = errors.New("no process of the image has private memory that is worth sharing")

// NewTemplate makes a template of an image, which must have been verified. It costs as much memory as the image
// has of it. Of the options Timeout, Log and Steps count.
func NewTemplate(ctx context.Context, r *image.Reader, o Options) (*Template, error) {
	j := newJob(r, o)
	defer j.close()
	ctx, cancel := context.WithDeadline(ctx, j.deadline)
	defer cancel()
	if err := checkSharing(j.m); err != nil {
		return nil, err
	}
	at, err := pickHole(j.m.MMs, holeLen)
	if err != nil {
		return nil, err
	}
	j.hole = hole(at)
	t := &Template{busy: make(chan struct{}, 1), closed: make(chan struct{}), hole: j.hole, root: r.Root(), pidfd: -1, want: wantedPIDs(j.m), areas: planAreas(j.m, j.hole)}
	if len(t.areas) == 0 {
		return nil, ErrNoTemplate
	}
	for i := range t.areas {
		t.bytes += stored(&t.areas[i].v)
	}
	j.tr = ptrace.NewTracer()
	step := j.op.Step("template", 0).Count("areas", int64(len(t.areas))).Count("bytes", int64(t.bytes))
	err = j.tr.Do(func() error {
		err := j.makeTemplate(ctx, t)
		if err != nil {
			j.killAll()
		}
		return err
	})
	if step.End(err); err != nil {
		closeFD(t.pidfd)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w (the limit was %v): %w", ErrTimeout, j.opt.Timeout, err)
		}
		return nil, fmt.Errorf("template: %w", err)
	}
	t.tr, j.tr = j.tr, nil
	return t, nil
}

// makeTemplate starts the process and fills it. It runs on the tracing thread.
func (j *job) makeTemplate(ctx context.Context, t *Template) error {
	if err := j.plant(); err != nil {
		return err
	}
	p, err := j.stay(t)
	if err != nil {
		return err
	}
	t.proc = p
	if t.pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		return fmt.Errorf("pidfd_open of the template: %w", err)
	}
	err = p.batch(func(b *ptrace.Batch) {
		b.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, b.Put(append([]byte(templateName), 0)).Addr(), 0, 0, 0).Label("set its name")
		b.Call(unix.SYS_CLOSE, 0).Label("close the channel")
		for _, s := range unneeded(j.hole, nil) {
			b.Call(unix.SYS_MUNMAP, s.Start, s.End-s.Start).Label("unmap what is not the stub's")
		}
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(procPath(p.pid, "oom_score_adj"), []byte(strconv.Itoa(templateOOM)), 0); err != nil {
		return err
	}
	if err := j.fillTemplate(ctx, t); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return err
	}
	return t.makeNext(j.deadline)
}

// stay takes down the registers of the seed and has it replaced by a process that is not in the way of a later
// restore: with an id from the top, where the kernel comes last.
func (j *job) stay(t *Template) (*proc, error) {
	first := j.byNode[seed]
	var err error
	if t.xstate, err = first.threads[0].XState(); err != nil {
		return nil, err
	}
	spare, err := newSpares(t.want)
	if err != nil {
		return nil, err
	}
	th, err := j.cloneAs(first, unix.CLONE_PARENT, 0, 0, spare)
	if err != nil {
		return nil, err
	}
	p, err := j.adopt(-th.TID, th) // it has no node
	if err != nil {
		return nil, err
	}
	return p, first.kill(j.deadline)
}

// check makes sure that each area is one mapping, which is what mremap(2) moves.
func (t *Template) check() error {
	text, err := quickread.File(procPath(t.proc.pid, "maps"))
	if err != nil {
		return err
	}
	maps, err := procfs.ParseMaps(text)
	if err != nil {
		return err
	}
	for i := range t.areas {
		v, found := &t.areas[i].v, false
		for k := range maps {
			found = found || maps[k].Start <= v.Start && v.End <= maps[k].End
		}
		if !found {
			return fmt.Errorf("the memory at %#x-%#x came out in pieces", v.Start, v.End)
		}
	}
	return nil
}

// PID is the process that holds the memory.
func (t *Template) PID() int { return t.proc.pid }

// Bytes is how much memory it holds.
func (t *Template) Bytes() int64 { return int64(t.bytes) }

// Gone reports whether the process has ended, by the OOM killer perhaps. Restores then do without it.
func (t *Template) Gone() bool {
	fds := []unix.PollFd{{Fd: int32(t.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// use waits until nobody else uses the template. It reports whether it is there still.
func (t *Template) use(ctx context.Context) (bool, error) {
	select {
	case t.busy <- struct{}{}:
		return true, nil
	case <-t.closed:
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("restore: wait for another restore from the same template: %w", ctx.Err())
	}
}

func (t *Template) release() { <-t.busy }

// Close ends the process, when no restore uses it any more. What was restored from it keeps the memory. It is called once;
// a restore that is given the template later does without it.
func (t *Template) Close() error {
	t.busy <- struct{}{} // for ever
	close(t.closed)
	err := t.tr.Do(func() error {
		deadline := time.Now().Add(killPatience)
		return errors.Join(t.endNext(deadline), t.proc.kill(deadline))
	})
	t.tr.Close()
	return errors.Join(err, unix.Close(t.pidfd))
}
