package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// proc is a process that is being restored: a stub at first.
type proc struct {
	pid     int
	node    int
	task    *image.Task      // nil: the seed or a placeholder
	threads []*ptrace.Thread // the leader first
	rem     *ptrace.Remote
	ended   bool            // a zombie, or a placeholder that is gone
	sleeps  map[int][]byte  // registers of threads whose sleep was restarted, by index
	areas   []int           // of the template, that it was born with
	shared  map[uint64]bool // VMAs that came with them, by their start
	sibling bool            // of the process that stood by, whose memory it shares: see templatenext.go
}

// traceOptions are set on every stub: all that it makes is traced too, and dies with us.
const traceOptions = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_EXITKILL

// adopt makes a proc of a stub that has stopped.
func (j *job) adopt(node int, th *ptrace.Thread) (*proc, error) {
	p := &proc{pid: th.TID, node: node, threads: []*ptrace.Thread{th}}
	if n := node - 1; n >= 0 && n < len(j.m.Tasks) {
		p.task = &j.m.Tasks[n]
	}
	j.procs = append(j.procs, p)
	j.byNode[node] = p
	rem, err := ptrace.NewStubRemote(p.pid, th, j.hole.insn(), j.hole.scratch(), scratchLen)
	if err != nil {
		return nil, fmt.Errorf("restore pid %d: %w", p.pid, err)
	}
	p.rem = rem
	return p, nil
}

// batch runs the calls that queue adds in the process's current thread.
func (p *proc) batch(queue func(b *ptrace.Batch)) error {
	b, err := p.rem.NewBatch()
	if err != nil {
		return err
	}
	queue(b)
	return b.Run()
}

// call runs one system call in the process.
func (p *proc) call(what string, nr uintptr, args ...uint64) (uint64, error) {
	v, err := p.rem.Syscall(nr, args...)
	if err != nil {
		return 0, fmt.Errorf("restore pid %d: %s: %w", p.pid, what, err)
	}
	return v, nil
}

// put writes bytes to the stub's data area.
func (j *job) put(p *proc, off uint64, b []byte) (uint64, error) {
	if off+uint64(len(b)) > dataLen {
		return 0, fmt.Errorf("restore pid %d: %d bytes are more than the stub's data area holds", p.pid, len(b))
	}
	addr := j.hole.data() + off
	if _, err := p.rem.Mem().WriteAt(b, int64(addr)); err != nil {
		return 0, fmt.Errorf("restore pid %d: write %d bytes at %#x: %w", p.pid, len(b), addr, err)
	}
	return addr, nil
}

// cloneArgs is struct clone_args of clone3(2), with the id to have behind it.
func cloneArgs(flags uint64, exitSignal int, id int, at uint64) []byte {
	const size = 88
	b := make([]byte, size+8)
	le.PutUint64(b, flags)
	le.PutUint64(b[32:], uint64(exitSignal))
	if id != 0 {
		le.PutUint64(b[64:], at+size)
		le.PutUint64(b[72:], 1)
		le.PutUint32(b[size:], uint32(id))
	}
	return b
}

// clonePatience bounds how often clone3 is tried again when an id is in use: it was free a
// moment ago, so either a process took it or something that has ended still holds it.
const clonePatience = 2 * time.Second

// clone makes a child or thread of p's current thread, with the id if it is not 0.
func (j *job) clone(p *proc, flags uint64, exitSignal, id int) (*ptrace.Thread, error) {
	const size = 88
	addr, err := j.put(p, 0, cloneArgs(flags, exitSignal, id, j.hole.data()))
	if err != nil {
		return nil, err
	}
	until := time.Now().Add(clonePatience)
	for {
		th, _, err := p.rem.Clone(unix.SYS_CLONE3, addr, size)
		switch {
		case err == nil:
			if id != 0 && th.TID != id {
				return th, &HostError{What: fmt.Sprintf("the process with id %d came out as %d", id, th.TID), Remedy: "restore in the pid namespace that the ids are of"}
			}
			return th, nil
		case errors.Is(err, unix.EEXIST):
			taken, terr := takenPID(map[int]bool{id: true})
			if terr != nil {
				return nil, terr
			}
			if time.Now().Before(until) && (taken == nil || taken.Use != "") {
				time.Sleep(time.Millisecond)
				continue
			}
			if taken == nil {
				taken = &PIDTakenError{PID: id, Use: "by a process that is about to end"}
			}
			return nil, taken
		case errors.Is(err, unix.EPERM) && id != 0:
			return nil, &HostError{What: fmt.Sprintf("the kernel does not let us make a process with the id %d", id), Err: err, Remedy: "restore needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run it as root"}
		}
		return nil, fmt.Errorf("restore: make process or thread %d: clone3 in pid %d: %w", id, p.pid, err)
	}
}

// kill kills a process and waits until we, its tracer, are told.
func (p *proc) kill(deadline time.Time) error {
	if p.ended {
		return nil
	}
	p.ended = true
	var errs []error
	if p.rem != nil {
		errs = append(errs, p.rem.Close())
	}
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		errs = append(errs, fmt.Errorf("kill pid %d: %w", p.pid, err))
	}
	for i := len(p.threads) - 1; i >= 0; i-- { // the leader is told of last
		errs = append(errs, waitEnd(p.threads[i], deadline))
	}
	return errors.Join(errs...)
}

// waitEnd waits until a dying thread is gone.
func waitEnd(th *ptrace.Thread, deadline time.Time) error {
	for {
		_, err := th.WaitStop(deadline)
		var gone *ptrace.GoneError
		if errors.As(err, &gone) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// killPatience bounds the wait for killed processes.
const killPatience = 5 * time.Second

// killAll kills every process that was made, the children before their parents. It is the
// way back from an error, so its own errors only matter for the log.
func (j *job) killAll() {
	deadline := time.Now().Add(killPatience)
	made := map[int]bool{}
	for i := len(j.procs) - 1; i >= 0; i-- {
		made[j.procs[i].pid] = true
		if err := j.procs[i].kill(deadline); err != nil {
			j.log("giving up: %v", err)
		}
	}
	// What the seed has not outlived comes to init, which may take its time.
	if err := waitPIDs(context.Background(), made, deadline); err != nil {
		j.log("giving up: %v", err)
	}
}

// alive returns the processes of tasks that are not zombies, in the order of the image.
func (j *job) alive() []*proc {
	var out []*proc
	for i := range j.m.Tasks {
		if p := j.byNode[i+1]; p != nil && !p.ended {
			out = append(out, p)
		}
	}
	return out
}
