package task

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
)

// checker collects the findings about one process.
type checker struct {
	pid         int
	tids        []int // the leader first
	status      procfs.Status
	personality uint32 // of the leader
	labelled    bool   // some security module keeps labels
	said        map[[3]string]bool
	findings    func(image.Finding)
}

// Check lists what of a process and its threads cannot be kept: kernel threads, zombies whose
// threads live, namespaces unlike ours, seccomp filters, security labels, directories and
// executables that are gone, threads with directories or descriptors of their own, io_uring and
// vhost workers, asynchronous I/O contexts, timers of dead threads,
// scheduling that has no place in an image, shadow stacks, 32-bit programs; and as
// losses, by policy, cgroup, audit login id and a Landlock sandbox that there may be. It changes
// nothing, works on running processes and needs the right to ptrace them.
func Check(pid int, findings func(image.Finding)) error {
	c := &checker{pid: pid, said: make(map[[3]string]bool), findings: findings}
	if err := c.check(); err != nil {
		return fmt.Errorf("pid %d: %w", pid, err)
	}
	return nil
}

// add adds a finding about a thread, or with tid 0 about the process. What has been said of one
// thread, the leader in most cases, is not said again of each other one.
func (c *checker) add(sev image.Severity, tid int, kind, what, remedy string) {
	key := [3]string{kind, what, remedy}
	if c.said[key] {
		return
	}
	c.said[key] = true
	c.findings(image.Finding{Severity: sev, PID: int32(c.pid), TID: int32(tid), FD: image.NoFD, Kind: kind, What: what, Remedy: remedy})
}

// refuse adds a refusal about the process.
func (c *checker) refuse(kind, what, remedy string) { c.add(image.Refuse, 0, kind, what, remedy) }

func (c *checker) check() (err error) {
	if c.status, err = readStatus(c.pid, 0); err != nil {
		return err
	}
	if c.status.Kthread {
		c.refuse("kernel thread", "it is part of the kernel", "choose a process of user space")
		return nil
	}
	if c.status.State == 'Z' {
		if c.status.Threads > 1 {
			c.refuse("zombie with threads", "its leader has ended while other threads run", "wait until all of them have ended; a main thread should not call pthread_exit")
		}
		return nil
	}
	if c.tids, err = threads(c.pid); err != nil {
		return err
	}
	if c.personality, err = readPersonality(c.pid, 0); err != nil {
		return err
	}
	for _, f := range []func() error{c.namespaces, c.labels, c.dirs, c.program, c.timers, c.losses} {
		if err := f(); err != nil {
			return err
		}
	}
	for _, tid := range c.tids {
		// A thread that ends meanwhile is nobody's business; a leader that does, is a process that ended.
		if err := c.thread(tid); err != nil && (tid == c.pid || !gone(err)) {
			return err
		}
	}
	return nil
}

// dirs finds directories that no path leads to.
func (c *checker) dirs() error {
	_, _, cwd := cwdPath(c.pid, 0)
	_, root := dirPath(c.pid, 0, "root", "root directory")
	for _, err := range [...]error{cwd, root} {
		var r *image.RefusedError
		switch {
		case errors.As(err, &r):
			for _, f := range r.Findings {
				c.findings(f)
			}
		case err != nil:
			return err
		}
	}
	return nil
}

// program finds code that cannot be run again.
func (c *checker) program() error {
	return checkCPU(c.pid, &c.status, c.refuse)
}

func (c *checker) timers() error {
	b, err := quickread.File(taskPath(c.pid, 0, "timers"))
	if err != nil {
		return err
	}
	list, err := procfs.ParseTimers(b)
	if err != nil {
		return err
	}
	alive := make(map[int]bool, len(c.tids))
	for _, tid := range c.tids {
		alive[tid] = true
	}
	for _, f := range checkTimers(c.pid, list, func(tid int) bool { return alive[tid] }) {
		c.findings(f)
	}
	return nil
}

// losses finds what belongs to the place a process runs in, and becomes that of whoever restores it.
func (c *checker) losses() error {
	for _, l := range [...]struct{ file, kind, what, remedy string }{
		{"cgroup", "cgroup", "it is in %s, and will be restored into the cgroup of whoever restores it", "move it after the restore, or restore from a shell in that cgroup"},
		{"loginuid", "audit login id", "it is %s, and will be that of whoever restores it", "restore from a session of that user if audit records matter"},
	} {
		mine, err := quickread.File("/proc/self/" + l.file)
		if err != nil {
			continue // a kernel without it
		}
		its, err := quickread.File(taskPath(c.pid, 0, l.file))
		if err != nil {
			return err
		}
		if !bytes.Equal(mine, its) {
			text := strings.Join(strings.Fields(string(its)), " ")
			c.add(image.Lose, 0, l.kind, fmt.Sprintf(l.what, text), l.remedy)
		}
	}
	return nil
}
