package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// Files that are about processes (kind.Later) are opened when all processes and threads are
// there. As an epoll instance may watch them, that is before any process gets its files. In a
// tree without such files each process gets its files first, since a table that threads share
// costs a wait for all CPUs (synchronize_rcu) whenever it grows.

// later reports whether a file is opened only then.
func (j *job) later(ref image.ObjRef) bool {
	_, ok := kind.ByName(j.m.Files[ref-1].Kind).(kind.Later)
	return ok
}

// anyLater reports whether a process has such a file.
func (j *job) anyLater() bool {
	for ref := range j.holder {
		if j.later(ref) {
			return true
		}
	}
	return false
}

// buildStates gives the processes their files, directories and threads.
func (j *job) buildStates(ctx context.Context, alive []*proc) error {
	if !j.anyLater() {
		return eachProc(alive, func(p *proc) error { return j.buildState(ctx, p) })
	}
	if err := j.each("threads", alive, j.buildThreads); err != nil {
		return err
	}
	if err := j.step("open late", j.openLate); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return j.each("files", alive, func(p *proc) error {
		if err := j.buildFiles(p); err != nil {
			return err
		}
		return j.buildOwn(p)
	})
}

// openLate opens the files that are about processes. Those that are not there any more are made
// for the time, and end before anybody gets the files.
func (j *job) openLate() error {
	made, err := j.makeDead()
	if err != nil {
		return err
	}
	if err := j.openLateFiles(); err != nil {
		return err
	}
	if err := j.depot.flush(); err != nil {
		return err
	}
	if err := j.closeShared(); err != nil {
		return err
	}
	for _, d := range made {
		end := image.Task{PID: int32(d.proc.pid), ExitStatus: int32(d.Status)}
		if err := j.endZombie(d.proc, &end); err != nil {
			return fmt.Errorf("restore: end process %d, which stands for one that had ended: %w", d.proc.pid, err)
		}
	}
	return nil
}

// openLateFiles opens the files on threads with the filesystem credentials of their users. What they
// want done in processes (kind.Env.In) is done here meanwhile, on the tracing thread.
func (j *job) openLateFiles() error {
	type request struct {
		f    func() error
		done chan error
	}
	requests, opened := make(chan request), make(chan error, 1)
	j.env.In = func(pid int, f func(p kind.Process) error) error {
		r := request{func() error { return j.inProcess(pid, f) }, make(chan error, 1)}
		requests <- r
		return <-r.done
	}
	j.env.File = j.ownFile
	defer func() { j.env.In, j.env.File = nil, nil }()
	go func() {
		opened <- j.eachUser(func(u *fileUser) error { return j.openFiles(u, true) })
	}()
	for {
		select {
		case r := <-requests:
			r.done <- r.f()
		case err := <-opened:
			return err
		}
	}
}

// inProcess runs f with a process of the tree, or one that stands for one that had ended.
func (j *job) inProcess(pid int, f func(p kind.Process) error) error {
	for _, p := range j.procs {
		if p.ended {
			continue
		}
		if p.pid == pid {
			return f(remoteProcess{j, p, p.pid})
		}
		for _, th := range p.threads {
			if th.TID == pid {
				return p.inThread(th, func() error { return f(remoteProcess{j, p, p.pid}) })
			}
		}
	}
	return fmt.Errorf("there is no process %d in the tree", pid)
}

// dead is a process that stands for one that had ended.
type dead struct {
	kind.Dead
	proc *proc
}

// makeDead makes a process for each kind.Dead, a child of the seed, which reaps it.
func (j *job) makeDead() ([]dead, error) {
	var made []dead
	j.env.Dead = map[string]int{}
	want := wantedPIDs(j.m)
	spare, err := newSpares(want)
	if err != nil {
		return nil, err
	}
	for i := range j.m.Files {
		ref := image.ObjRef(i + 1)
		k, ok := kind.ByName(j.m.Files[i].Kind).(kind.Later)
		if _, held := j.holder[ref]; !ok || !held {
			continue
		}
		all, err := k.Dead(&j.m.Files[i])
		if err != nil {
			return nil, j.fileError(ref, "", "", err)
		}
		for _, d := range all {
			if j.env.Dead[d.Key] != 0 {
				continue
			}
			p, err := j.standIn(int(d.PID), want, spare)
			if err != nil {
				return nil, err
			}
			j.env.Dead[d.Key], made = p.pid, append(made, dead{d, p})
		}
	}
	return made, nil
}

// standIn makes a process, if it can be had with that id.
func (j *job) standIn(id int, want map[int]bool, spare *spares) (*proc, error) {
	if id <= 0 || want[id] || pidInUse(id) {
		id = 0
	}
	th, err := j.cloneAs(j.byNode[seed], 0, int(unix.SIGCHLD), id, spare)
	var taken *PIDTakenError
	if id != 0 && (errors.As(err, &taken) || errors.Is(err, unix.EINVAL)) { // taken since, or above pid_max
		th, err = j.cloneAs(j.byNode[seed], 0, int(unix.SIGCHLD), 0, spare)
	}
	if err != nil {
		return nil, err
	}
	return j.adopt(-th.TID, th)
}
