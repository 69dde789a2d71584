package task

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Threads that the kernel runs inside a process, by PF_* flags of linux/sched.h.
const (
	// IOWorker is PF_IO_WORKER: a thread that the kernel runs for io_uring.
	IOWorker     = 0x00000010
	pfUserWorker = 0x00004000 // vhost and others
)

// namespaceFlags are the namespaces of /proc/PID/ns, and the option of nsenter(1) for each.
var namespaceFlags = [...]struct{ name, option string }{
	{"mnt", "-m"}, {"pid", "-p"}, {"pid_for_children", "-p"}, {"net", "-n"}, {"user", "-U"}, {"uts", "-u"},
	{"ipc", "-i"}, {"cgroup", "-C"}, {"time", "-T"}, {"time_for_children", "-T"},
}

// thread checks one thread.
func (c *checker) thread(tid int) error {
	add := func(kind, what, remedy string) { c.add(image.Refuse, tid, kind, what, remedy) }
	stat, err := readStat(c.pid, tid)
	if err != nil {
		return err
	}
	if tid != c.pid && stat.Flags&IOWorker != 0 {
		return nil // what it may be doing the ring tells
	}
	if tid != c.pid && stat.Flags&pfUserWorker != 0 {
		add("kernel worker thread", fmt.Sprintf("the kernel runs %q inside the process, which no checkpoint can stop", stat.Comm), "let the program close its vhost first")
		return nil
	}
	status, err := readStatus(c.pid, tid)
	if err != nil {
		return err
	}
	if status.Seccomp != 0 {
		add("seccomp", "its system call filter is not kept by this version", "start it without the filter (containers: --security-opt seccomp=unconfined, systemd: an empty SystemCallFilter=)")
	}
	c.landlock(tid, status.NoNewPrivs)
	if err := checkSched(c.pid, tid, add); err != nil {
		return err
	}
	if tid == c.pid {
		return nil
	}
	return c.likeLeader(tid, add)
}

// likeLeader finds what a thread does not share with the leader, although all threads of a restored
// process will. Descriptor tables may differ.
func (c *checker) likeLeader(tid int, add func(kind, what, remedy string)) error {
	same, err := Kcmp(c.pid, tid, KcmpFS)
	if err != nil {
		return err
	}
	if !same {
		add("own working directory", "the thread has a working directory, root and umask of its own, which is not kept",
			"let the program make its threads with CLONE_FS and without unshare(2)")
	}
	theirs, err := readPersonality(c.pid, tid)
	if err != nil {
		return err
	}
	if theirs != c.personality {
		add("personality", fmt.Sprintf("the thread has personality %#x, the leader %#x", theirs, c.personality), "let all threads of the program have the same")
	}
	return nil
}

// namespaces compares those of every thread with ours.
func (c *checker) namespaces() error {
	own := make(map[string]string)
	for _, ns := range namespaceFlags {
		link, err := os.Readlink("/proc/self/ns/" + ns.name)
		if errors.Is(err, unix.ENOENT) {
			continue // a kernel without this namespace
		}
		if err != nil {
			return err
		}
		own[ns.name] = link
	}
	for _, tid := range c.tids {
		if err := c.threadNamespaces(tid, own); err != nil && (tid == c.pid || !gone(err)) {
			return err
		}
	}
	return nil
}

func (c *checker) threadNamespaces(tid int, own map[string]string) error {
	dir, err := unix.Open(taskPath(c.pid, tid, "ns"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: taskPath(c.pid, tid, "ns"), Err: err}
	}
	defer unix.Close(dir) // the way to it is half of the cost, and there may be thousands of threads
	var buf [64]byte
	for _, ns := range namespaceFlags {
		if own[ns.name] == "" {
			continue
		}
		n, err := unix.Readlinkat(dir, ns.name, buf[:])
		if err != nil {
			return &os.PathError{Op: "readlink", Path: taskPath(c.pid, tid, "ns/"+ns.name), Err: err}
		}
		if link := string(buf[:n]); link != own[ns.name] {
			c.add(image.Refuse, tid, ns.name+" namespace", fmt.Sprintf("it is in %s, this process in %s", link, own[ns.name]),
				fmt.Sprintf("run ckptfs inside it, as with nsenter -t %d %s", c.pid, ns.option))
		}
	}
	return nil
}

// labels finds security labels (SELinux, AppArmor, Smack) that a restored process would not
// have: it gets those of the restorer.
func (c *checker) labels() error {
	for _, tid := range c.tids {
		if err := c.threadLabels(tid, "attr"); err != nil && (tid == c.pid || !gone(err)) {
			return err
		}
		if !c.labelled {
			return nil // no security module answers, so the other threads have no label either
		}
	}
	return nil
}

// threadLabels looks through a folder of /proc/PID/task/TID/attr and those in it.
func (c *checker) threadLabels(tid int, dir string) error {
	entries, err := os.ReadDir(taskPath(c.pid, tid, dir))
	if errors.Is(err, unix.ENOENT) {
		return c.exists(tid)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e.Name()
		if e.IsDir() {
			if err := c.threadLabels(tid, name); err != nil {
				return err
			}
			continue
		}
		label, err := quickread.File(taskPath(c.pid, tid, name))
		if errors.Is(err, unix.EINVAL) || e.Name() == "prev" {
			continue // EINVAL: no security module answers for it; prev is what the label was, and nothing depends on it
		}
		if err != nil {
			return err
		}
		c.labelled = true
		own, err := quickread.File("/proc/self/" + name)
		if err != nil {
			return err
		}
		its, mine := labelText(label), labelText(own)
		if e.Name() != "current" {
			mine = "" // labels for the next exec, file, socket or key, which nobody inherits
		}
		if its != mine && !strings.Contains(its, "unconfined") {
			c.add(image.Refuse, tid, "security label", fmt.Sprintf("%s is %q, a restored process would have %q", name, its, mine),
				"run ckptfs under the same label, or the program unconfined")
		}
	}
	return nil
}

// exists tells a missing file from a missing thread.
func (c *checker) exists(tid int) error {
	_, err := readStat(c.pid, tid)
	return err
}

func labelText(b []byte) string { return strings.TrimRight(string(b), "\x00\n") }
