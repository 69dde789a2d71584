package task

import "github.com/ckptfs/ckptfs/ckpt/quickread"

// HasUndoList reports whether a process has a list of SysV semaphore adjustments (SEM_UNDO), which may be empty, as it is in
// most programs with threads.
//
// The kernel shows the list to nobody. But a process that has none compares equal to any other that
// has none, and two unrelated processes never share one.
func HasUndoList(pid int) (bool, error) {
	pids, err := quickread.Numbers("/proc")
	if err != nil {
		return false, err
	}
	for _, other := range pids {
		if other == pid {
			continue
		}
		// Errors are of processes that ended or that we may not look at: ask the next.
		if same, err := Kcmp(pid, other, KcmpSysvsem); err == nil && same {
			return false, nil
		}
	}
	return true, nil
}
