package task

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// semctl(2) command of linux/sem.h.
const semGetPID = 11

// undo finds SysV semaphore adjustments that the kernel would undo when the process ends.
//
// The kernel shows the list to nobody. But a process that has none compares equal to any other that
// has none, and two unrelated processes never share one. Where there is a list it may still be
// empty, as it is in every program with threads: then what counts is whether the process was the
// last to change a semaphore.
func (c *checker) undo() error {
	sems, err := quickread.File("/proc/sysvipc/sem")
	if err != nil || bytes.Count(sems, []byte("\n")) <= 1 {
		return nil // no SysV IPC here, or no semaphores: nothing to undo
	}
	none, err := c.hasNoUndoList()
	if err != nil || none {
		return err
	}
	for _, set := range parseSemSets(sems) {
		if c.changedLast(set) {
			c.refuse("SysV semaphore undo", fmt.Sprintf("it was the last to change the semaphore set %d, perhaps with SEM_UNDO, which is not kept", set.id),
				"let the program release its semaphores first")
		}
	}
	return nil
}

// hasNoUndoList compares with every other process until one compares equal.
func (c *checker) hasNoUndoList() (bool, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || pid == c.pid {
			continue
		}
		// Errors are of processes that ended or that we may not look at: ask the next.
		if same, err := Kcmp(c.pid, pid, KcmpSysvsem); err == nil && same {
			return true, nil
		}
	}
	return false, nil
}

type semSet struct{ id, n int }

// parseSemSets parses /proc/sysvipc/sem: a line of titles, then key, semid, perms, nsems …
func parseSemSets(b []byte) []semSet {
	var all []semSet
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 4 {
			continue
		}
		id, err1 := strconv.Atoi(string(f[1]))
		n, err2 := strconv.Atoi(string(f[3]))
		if err1 == nil && err2 == nil {
			all = append(all, semSet{id, n})
		}
	}
	return all
}

// changedLast says whether the process made the last change of a semaphore of the set.
func (c *checker) changedLast(set semSet) bool {
	for i := range set.n {
		pid, _, e := unix.RawSyscall6(unix.SYS_SEMCTL, uintptr(set.id), uintptr(i), semGetPID, 0, 0, 0)
		if e == 0 && int(pid) == c.pid {
			return true
		}
	}
	return false
}
