package task

import (
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

const (
	robustHeadLen = 24 // struct robust_list_head
	maxComm       = 15 // TASK_COMM_LEN without the NUL
)

// ReadThreadOutside fills in what other processes can ask about a thread: name, credentials
// but for securebits, scheduling but for
// AllCPUs (see ReadTaskInside), robust list and IO_FLUSHER. status is that of the thread, nil: not read yet.
func ReadThreadOutside(pid, tid int, th *image.Thread, status *procfs.Status) error {
	th.TID = int32(tid)
	err := readThreadOutside(pid, tid, th, status)
	if err != nil {
		return fmt.Errorf("thread %d of pid %d: %w", tid, pid, err)
	}
	return nil
}

func readThreadOutside(pid, tid int, th *image.Thread, status *procfs.Status) error {
	stat, err := readStat(pid, tid)
	if err != nil {
		return err
	}
	th.Comm = stat.Comm
	th.Prctl.IOFlusher = stat.Flags&pfIOFlusher == pfIOFlusher
	if status == nil {
		st, err := readStatus(pid, tid)
		if err != nil {
			return err
		}
		status = &st
	}
	securebits := th.Creds.Securebits // from the thread itself, perhaps before
	th.Creds = credsOf(status)
	th.Creds.Securebits = securebits
	slack := th.Sched.TimerSlack
	if th.Sched, err = readSched(tid); err != nil {
		return err
	}
	th.Sched.TimerSlack = slack
	th.RobustList, err = robustList(tid)
	return err
}

// robustList is get_robust_list(2): the list of futexes to release if the thread dies.
func robustList(tid int) (uint64, error) {
	var head, length uint64
	_, _, e := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid), uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&length)))
	if e != 0 {
		return 0, fmt.Errorf("get_robust_list: %w", e)
	}
	if head != 0 && length != robustHeadLen {
		return 0, fmt.Errorf("get_robust_list: a head of %d bytes, want %d", length, robustHeadLen)
	}
	return head, nil
}

// ReadThreadInside queues what only the thread itself can ask: alternate stack,
// clear_child_tid, parent-death signal, securebits, timer slack and the like. done takes the
// results after Batch.Run; it may return *image.RefusedError, see the package comment.
func ReadThreadInside(b *ptrace.Batch, th *image.Thread) (done func() error) {
	q := newQueue(b)
	readAltStack(q, &th.AltStack)
	readSecurebits(q, &th.Creds)
	readPrctl(q, th)
	readCPUID(q, th)
	readKeyrings(q, th.TID)
	readMempolicy(q, th)
	return q.done
}

// WriteThread queues the name and what a thread has registered with the kernel, in memory that must
// be there, and the settings that need no order; those that need privilege come before WriteCreds.
func WriteThread(b *ptrace.Batch, th *image.Thread) {
	name := make([]byte, maxComm+1)
	copy(name[:maxComm], th.Comm)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, b.Put(name).Addr()).Label("set the name")
	b.Call(unix.SYS_SET_TID_ADDRESS, th.ClearTID).Label("set clear_child_tid")
	b.Call(unix.SYS_SET_ROBUST_LIST, th.RobustList, robustHeadLen).Label("set the robust list")
	writeAltStack(b, &th.AltStack)
	if r := &th.Rseq; r.Ptr != 0 {
		b.Call(unix.SYS_RSEQ, r.Ptr, uint64(r.Size), uint64(r.Flags), uint64(r.Sig)).Label("register rseq")
	}
	writePrctl(b, th)
	writeCPUID(b, th)
	writeMempolicy(b, th)
}

// WriteThreadOutside sets the scheduling of a thread from outside. warn is for what
// NAME.log should say.
func WriteThreadOutside(tid int, th *image.Thread, warn func(string)) error {
	if err := writeSched(tid, &th.Sched); err != nil {
		return err
	}
	has, err := affinity(tid)
	if err != nil {
		return fmt.Errorf("thread %d: %w", tid, err)
	}
	if lacks := subtract(th.Sched.Affinity, has); len(lacks) != 0 && !th.Sched.AllCPUs {
		warn(fmt.Sprintf("thread %d: the cpuset it was restored in keeps it from the CPUs %s", tid, cpuList(lacks)))
	}
	return nil
}
