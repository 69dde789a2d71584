package restore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// Threads may have another descriptor table than their process. It goes by the id of the first thread that
// has it, as in the image (locks, entries of epoll sets), and that thread does what is to be done by who has
// the table. It is made by close_range(2) in that thread, empty; threads that share it are cloned from there.

// holding is a descriptor table and who acts for it.
type holding struct {
	id     int // of the process or thread; the table goes by it
	thread int // its index among the threads of the process
	fds    []image.FD
}

// holdings lists the tables of a task, its own first.
func holdings(m *image.Manifest, t *image.Task) []holding {
	var all []holding
	seen := map[image.ObjRef]bool{}
	for i := range t.Threads {
		if th := &t.Threads[i]; !seen[th.FDTable] {
			seen[th.FDTable] = true
			all = append(all, holding{int(th.TID), i, m.FDTables[th.FDTable-1].FDs})
		}
	}
	return all
}

// eachTable runs f for every table of a process, while the thread that acts for it is the one that
// carries out remote calls.
func (j *job) eachTable(p *proc, f func(u holding) error) error {
	all := holdings(j.m, p.task)
	if err := f(all[0]); err != nil {
		return err
	}
	return j.eachOwn(p, f)
}

// eachOwn is eachTable without the table of the process.
func (j *job) eachOwn(p *proc, f func(u holding) error) error {
	for _, u := range holdings(j.m, p.task)[1:] {
		if err := p.inThread(p.threads[u.thread], func() error { return f(u) }); err != nil {
			return err
		}
	}
	return nil
}

// tableOf is the table that goes by an id.
func (j *job) tableOf(id int32) []image.FD {
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if t.State == image.TaskZombie {
			continue
		}
		for k := range t.Threads {
			if t.Threads[k].TID != id {
				continue
			}
			for _, u := range holdings(j.m, t) {
				if u.thread == k {
					return u.fds
				}
			}
			return nil
		}
	}
	return nil
}

// processOf is the process of a thread of the image, or the id itself.
func (j *job) processOf(id int) int {
	for i := range j.m.Tasks {
		for k := range j.m.Tasks[i].Threads {
			if int(j.m.Tasks[i].Threads[k].TID) == id {
				return int(j.m.Tasks[i].PID)
			}
		}
	}
	return id
}

// openPidfd opens a pidfd of a process, or of a thread whose own table is to be reached.
func (j *job) openPidfd(id int) (int, error) {
	flags := 0
	if j.processOf(id) != id {
		flags = pidfdThread
	}
	fd, err := unix.PidfdOpen(id, flags)
	if err != nil {
		return -1, fmt.Errorf("restore pid %d: pidfd_open: %w", id, err)
	}
	return fd, nil
}

// pidfdThread is PIDFD_THREAD of linux/pidfd.h, since Linux 6.9.
const pidfdThread = unix.O_EXCL

// checkOwnTables checks that the tables of threads can be reached here.
func checkOwnTables(m *image.Manifest) error {
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.State == image.TaskZombie || len(holdings(m, t)) == 1 {
			continue
		}
		fd, err := unix.PidfdOpen(unix.Gettid(), pidfdThread)
		if errors.Is(err, unix.EINVAL) {
			return &HostError{What: fmt.Sprintf("pid %d has threads with file descriptors of their own, which takes Linux 6.9", t.PID), Err: err, Remedy: "restore it under the kernel it was taken on"}
		}
		if err == nil {
			closeFD(fd)
		}
	}
	return nil
}

// makeThread makes a thread of a process with the table that it has to have.
func (j *job) makeThread(p *proc, i int) error {
	it := &p.task.Threads[i]
	first := slices.IndexFunc(p.task.Threads, func(th image.Thread) bool { return th.FDTable == it.FDTable })
	var th *ptrace.Thread
	clone := func() (err error) {
		th, err = j.clone(p, threadFlags, 0, int(it.TID))
		return err
	}
	var err error
	if first == 0 || first == i {
		err = clone()
	} else {
		err = p.inThread(p.threads[first], clone)
	}
	if th != nil {
		p.threads = append(p.threads, th)
	}
	if err != nil || first != i {
		return err
	}
	const unshare = 2 // CLOSE_RANGE_UNSHARE of linux/close_range.h: what is to be closed is not even copied
	return p.inThread(th, func() error {
		_, err := p.call("make its own descriptor table", unix.SYS_CLOSE_RANGE, 0, ^uint64(0)>>32, unshare)
		return err
	})
}

// buildOwn gives the threads that have a table of their own their files, and then takes the late steps of all tables of the
// process: what closes a descriptor anywhere in a process undoes some (mq_notify(3)).
func (j *job) buildOwn(p *proc) error {
	if len(holdings(j.m, p.task)) == 1 {
		return nil
	}
	err := j.eachOwn(p, func(u holding) error {
		at, err := kind.Lend(j.remote(p, u), j.channel[1])
		if err != nil {
			return fmt.Errorf("restore thread %d: give it the channel: %w", u.id, err)
		}
		if at != 0 { // the pidfd of us stood there for the time
			if err := p.batch(func(b *ptrace.Batch) {
				b.Call(unix.SYS_DUP3, at, 0, unix.O_CLOEXEC).Label("move the channel")
				b.Call(unix.SYS_CLOSE, at).Label("move the channel")
			}); err != nil {
				return err
			}
		}
		return j.fillTable(p, u.fds)
	})
	if err != nil {
		return err
	}
	if err := j.finishFiles(p); err != nil {
		return err
	}
	return j.eachOwn(p, func(u holding) error { return j.finishTable(p, u) })
}
