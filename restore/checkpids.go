package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// reapPatience is how long a restore waits until ids are given back that belong to
// processes which have ended already: init may take a second to collect them.
const reapPatience = 5 * time.Second

// wantedPIDs returns every process and thread id of the image.
func wantedPIDs(m *image.Manifest) map[int]bool {
	want := map[int]bool{}
	for i := range m.Tasks {
		want[int(m.Tasks[i].PID)] = true
		for j := range m.Tasks[i].Threads {
			want[int(m.Tasks[i].Threads[j].TID)] = true
		}
	}
	return want
}

// waitPIDs returns when all ids are free. One that a living process has is an error at once;
// those that only a zombie, or a process group or session holds, get some time.
func waitPIDs(ctx context.Context, want map[int]bool, deadline time.Time) error {
	if d := time.Now().Add(reapPatience); d.Before(deadline) {
		deadline = d
	}
	for {
		taken, err := takenPID(want)
		if err != nil || taken == nil {
			return err
		}
		if taken.Use == "" || time.Now().After(deadline) {
			return taken
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until pid %d is free: %w", taken.PID, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// takenPID returns the lowest of the ids that is in use, or nil. Those of living processes
// come before others.
func takenPID(want map[int]bool) (*PIDTakenError, error) {
	var late *PIDTakenError
	for _, pid := range slices.Sorted(maps.Keys(want)) {
		st, err := readStat(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch {
		case st.State == 'Z' || st.State == 'X':
		case ending(pid, &st):
			late = holder(pid, "by a process that is about to end,")
		default:
			return holder(pid, ""), nil
		}
	}
	if late != nil {
		return late, nil
	}
	return indirectlyTaken(want)
}

// pfExiting is PF_EXITING of linux/sched.h, in the flags of /proc/PID/stat.
const pfExiting = 4

// ending reports whether a process or thread has begun to exit, or has been killed and will
// as soon as it runs: the tree that was just checkpointed and killed may be like that.
func ending(pid int, st *procfs.Stat) bool {
	if st.Flags&pfExiting != 0 {
		return true
	}
	b, err := quickread.File(procPath(pid, "status"))
	if err != nil {
		return isGone(err)
	}
	status, err := procfs.ParseStatus(b)
	return err == nil && (status.SigPnd|status.ShdPnd)&(1<<(unix.SIGKILL-1)) != 0
}

// indirectlyTaken looks for ids whose processes have ended, or that are only the number of a
// process group or session.
func indirectlyTaken(want map[int]bool) (*PIDTakenError, error) {
	pids, err := allPIDs()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		st, err := readStat(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		switch {
		case want[pid] && st.State == 'Z':
			return &PIDTakenError{PID: pid, Comm: st.Comm, Use: fmt.Sprintf("by a process that has ended and waits for its parent %d to collect it,", st.PPID)}, nil
		case want[st.PGID]:
			return holderOf(st.PGID, pid, "as the process group of"), nil
		case want[st.SID]:
			return holderOf(st.SID, pid, "as the session of"), nil
		}
	}
	return nil, nil
}

// holder describes who has a process or thread id.
func holder(pid int, use string) *PIDTakenError {
	e := &PIDTakenError{PID: pid, Use: use}
	if st, err := readStat(pid); err == nil {
		e.Comm = st.Comm
	}
	if b, err := quickread.File(procPath(pid, "cmdline")); err == nil {
		e.Cmdline = strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
	}
	return e
}

// holderOf describes a process that uses an id as its group or session.
func holderOf(id, pid int, use string) *PIDTakenError {
	e := holder(pid, fmt.Sprintf("%s pid %d,", use, pid))
	e.PID = id
	return e
}

// pidInUse reports whether an id is in use in any way.
func pidInUse(pid int) bool {
	if _, err := os.Stat(procPath(pid, "")); err == nil {
		return true
	}
	taken, err := indirectlyTaken(map[int]bool{pid: true})
	return err != nil || taken != nil // in doubt it is
}

// allPIDs lists the processes of our pid namespace.
func allPIDs() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var out []int
	for _, s := range names {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

func procPath(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }

// readStat reads /proc/PID/stat of a process or thread. A process that ends while it is being
// read is os.ErrNotExist too.
func readStat(pid int) (procfs.Stat, error) {
	b, err := quickread.File(procPath(pid, "stat"))
	if isGone(err) {
		return procfs.Stat{}, fmt.Errorf("pid %d: %w", pid, os.ErrNotExist)
	}
	if err != nil {
		return procfs.Stat{}, err
	}
	st, err := procfs.ParseStat(b)
	if err != nil {
		return st, fmt.Errorf("pid %d: %w", pid, err)
	}
	return st, nil
}

// isGone reports whether an error of /proc means that the process has ended.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
