package task

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// ReadTaskOutside fills in what other processes can ask about a process: limits, oom_score_adj,
// personality, autogroup; and if mm is not nil the fields of the address space, its auxiliary
// vector, coredump_filter and executable. t.PID need not be set.
func ReadTaskOutside(pid int, t *image.Task, mm *image.MM) error {
	if err := readTaskOutside(pid, t, mm); err != nil {
		return fmt.Errorf("pid %d: %w", pid, err)
	}
	return nil
}

func readTaskOutside(pid int, t *image.Task, mm *image.MM) (err error) {
	if t.Rlimits, err = readRlimits(pid); err != nil {
		return err
	}
	if t.OOMScoreAdj, err = readOOMScoreAdj(pid); err != nil {
		return err
	}
	if t.Personality, err = readPersonality(pid, 0); err != nil {
		return err
	}
	if t.AutoNice, err = readAutogroup(pid); err != nil {
		return err
	}
	if mm == nil {
		return nil
	}
	return readMMOutside(pid, mm)
}

// readPersonality reads personality(2) of a thread.
func readPersonality(pid, tid int) (uint32, error) {
	b, err := quickread.File(taskPath(pid, tid, "personality"))
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
	return uint32(v), err
}

func readOOMScoreAdj(pid int) (int32, error) {
	b, err := quickread.File(taskPath(pid, 0, "oom_score_adj"))
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	return int32(v), err
}

func writeOOMScoreAdj(pid int, want int32) error {
	has, err := readOOMScoreAdj(pid)
	if err != nil || has == want {
		return err
	}
	err = writeFile(taskPath(pid, 0, "oom_score_adj"), strconv.Itoa(int(want)))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("pid %d: its oom_score_adj was %d, here it is %d, and lowering it needs CAP_SYS_RESOURCE: restore with that capability: %w", pid, want, has, err)
	}
	return err
}

// readAutogroup reads the nice value of the session's autogroup, see sched(7); 0 where the
// kernel has no autogroups.
func readAutogroup(pid int) (int32, error) {
	b, err := quickread.File(taskPath(pid, 0, "autogroup"))
	if gone(err) {
		if _, e := readStat(pid, 0); e == nil {
			return 0, nil
		}
	}
	if err != nil {
		return 0, err
	}
	return parseAutogroup(string(b))
}

// parseAutogroup parses "/autogroup-10 nice 0"; a process without one has an empty file.
func parseAutogroup(s string) (int32, error) {
	_, nice, ok := strings.Cut(strings.TrimSpace(s), " nice ")
	if !ok {
		return 0, nil
	}
	v, err := strconv.ParseInt(nice, 10, 32)
	return int32(v), err
}

// writeAutogroup sets the nice value of the autogroup that a session leader made with
// setsid. The autogroup of a session whose leader is not restored belongs to others too.
func writeAutogroup(pid int, t *image.Task, warn func(string)) error {
	has, err := readAutogroup(pid)
	if err != nil || has == t.AutoNice {
		return err
	}
	if t.SID != t.PID {
		warn(fmt.Sprintf("pid %d: its autogroup had nice %d, it is in one of nice %d now, which it shares with others", pid, t.AutoNice, has))
		return nil
	}
	return writeFile(taskPath(pid, 0, "autogroup"), strconv.Itoa(int(t.AutoNice)))
}

// ReadTaskInside queues, for the leader, what only the process itself can ask: signal actions,
// timers, subreaper, brk and the settings of its address space. status and timers are
// /proc/PID/status and /proc/PID/timers of now. done takes the results after Batch.Run, while the
// scratch memory still is where it was; it may return *image.RefusedError, see the package comment.
// It also sets Sched.AllCPUs of all t.Threads, which ReadThreadOutside has filled in: once per
// process, not per thread.
func ReadTaskInside(b *ptrace.Batch, status procfs.Status, timers []procfs.Timer, t *image.Task, mm *image.MM, sh *image.Sighand) (done func() error) {
	q := newQueue(b)
	readITimers(q, t)
	readTimers(q, timers, t)
	readSighand(q, sh)
	readSubreaper(q, t)
	if mm != nil {
		readMMInside(q, status, mm)
	}
	readCPUProcess(q, t)
	q.then(func() error { return markAllCPUs(t.Threads) })
	return q.done
}

// readSubreaper queues PR_GET_CHILD_SUBREAPER.
func readSubreaper(q *queue, t *image.Task) {
	buf := q.b.Alloc(8)
	q.b.Call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, buf.Addr()).Label("read CHILD_SUBREAPER")
	q.then(func() error {
		t.Subreaper = le.Uint32(buf.Bytes()) != 0
		return nil
	})
}

// WriteTaskOutside sets limits, oom_score_adj, coredump_filter and the nice value of the autogroup.
// It comes before WriteCreds: the limits of another user's process may only be set with
// CAP_SYS_RESOURCE; and after memory and descriptors, which the limits may forbid. A hard limit
// that cannot be raised is a *LimitError. warn is for what NAME.log should say.
func WriteTaskOutside(pid int, t *image.Task, mm *image.MM, warn func(string)) error {
	for i := range t.Timers {
		if pt := &t.Timers[i]; pt.Overrun != 0 {
			warn(fmt.Sprintf("pid %d: the overrun count of POSIX timer %d was %d, timer_getoverrun gives 0 until it fires again", pid, pt.ID, pt.Overrun))
		}
	}
	if mm != nil {
		warnDumpable(pid, mm, warn)
		if err := writeCoreFilter(pid, mm.CoreFilter); err != nil {
			return fmt.Errorf("pid %d: set its coredump_filter: %w", pid, err)
		}
	}
	if err := writeOOMScoreAdj(pid, t.OOMScoreAdj); err != nil {
		return err
	}
	if err := writeAutogroup(pid, t, warn); err != nil {
		return fmt.Errorf("pid %d: set the nice value of its autogroup: %w", pid, err)
	}
	return writeRlimits(pid, t.Rlimits)
}

// WriteLast queues what a change of credentials would undo, and what begins to run or to forbid at
// once: personality, parent-death signal, dumpable; in the leader, which must be the last thread of
// its process, subreaper, MDWE and timers; and the queued signals. After this batch the thread
// makes no other one, which SIGURG among them would end early: see WriteUrgent.
func WriteLast(b *ptrace.Batch, t *image.Task, th *image.Thread, mm *image.MM, leader bool) {
	b.Call(unix.SYS_PERSONALITY, uint64(t.Personality)).Label("set the personality")
	b.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(th.Prctl.PDeathSig)).Label("set the parent-death signal")
	writeDumpable(b, mm)
	if leader {
		if t.Subreaper {
			b.Call(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1).Label("set CHILD_SUBREAPER")
		}
		if mm.MDWE != 0 {
			b.Call(unix.SYS_PRCTL, unix.PR_SET_MDWE, uint64(mm.MDWE)).Label("set MDWE")
		}
		writeTimers(b, t, exactTimerIDs())
		writeITimers(b, t)
	}
	writePending(b, t, th, leader)
}

// CheckRestore says, before anything is made, why the state of a task cannot be given back
// by this process on this machine: capabilities, limits, CPUs, timer ids. It joins all reasons.
func CheckRestore(t *image.Task, mm *image.MM) error {
	if t.State == image.TaskZombie {
		return nil
	}
	own, err := readOwnCaps()
	if err != nil {
		return err
	}
	errs := []error{checkRlimits(int(t.PID), t.Rlimits, own), checkTimerIDs(t, exactTimerIDs()), checkPending(t)}
	if mm != nil {
		errs = append(errs, checkMM(t.PID, mm), checkPolicies(t, mm))
	}
	for i := range t.Threads {
		th := &t.Threads[i]
		errs = append(errs, checkCreds(th.TID, &th.Creds, own), checkAffinity(th.TID, &th.Sched), checkPrctl(th, own))
	}
	return errors.Join(errs...)
}
