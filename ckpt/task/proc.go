package task

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// taskPath is a file of /proc/PID/task/TID, or of /proc/PID if tid is 0.
func taskPath(pid, tid int, name string) string {
	p := "/proc/" + strconv.Itoa(pid)
	if tid != 0 {
		p += "/task/" + strconv.Itoa(tid)
	}
	return p + "/" + name
}

// writeFile writes a setting to a file of /proc with one write(2).
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// gone says whether an error means that the process or thread has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// readStatus reads /proc/PID/status, or that of one thread.
func readStatus(pid, tid int) (procfs.Status, error) {
	b, err := quickread.File(taskPath(pid, tid, "status"))
	if err != nil {
		return procfs.Status{}, err
	}
	return procfs.ParseStatus(b)
}

// readStat reads /proc/PID/stat, or that of one thread.
func readStat(pid, tid int) (procfs.Stat, error) {
	b, err := quickread.File(taskPath(pid, tid, "stat"))
	if err != nil {
		return procfs.Stat{}, err
	}
	return procfs.ParseStat(b)
}

// threads lists the threads of a process, the leader first.
func threads(pid int) ([]int, error) {
	all, err := quickread.Numbers(taskPath(pid, 0, "task"))
	if err != nil {
		return nil, err
	}
	tids := []int{pid}
	for _, tid := range all {
		if tid != pid {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// refused is the error for state that was found not to be restorable while it was read.
func refused(pid, tid int, kind, what, remedy string) error {
	return &image.RefusedError{Findings: []image.Finding{{
		Severity: image.Refuse, PID: int32(pid), TID: int32(tid), FD: image.NoFD, Kind: kind, What: what, Remedy: remedy,
	}}}
}

// queue is a batch together with what is to be done with its results.
type queue struct {
	b     *ptrace.Batch
	after []func() error
	pid   *ptrace.Ret // getpid(2), for findings
}

func newQueue(b *ptrace.Batch) *queue {
	return &queue{b: b, pid: b.Call(unix.SYS_GETPID).Label("getpid")}
}

// refused is the error for state of the thread (tid 0: of the process) that is not kept.
func (q *queue) refused(tid int32, kind, what, remedy string) error {
	return refused(int(q.pid.Val()), int(tid), kind, what, remedy)
}

// then adds a step that runs when the batch has run.
func (q *queue) then(f func() error) { q.after = append(q.after, f) }

// done takes the results, in the order in which they were queued.
func (q *queue) done() error {
	for _, f := range q.after {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// bit is the bit of a signal in a sigset or of a capability counted from 1.
func bit(n int) uint64 { return 1 << (n - 1) }
