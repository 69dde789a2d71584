package restore

import (
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// tablesJob is a process with three tables, one of which two threads share.
func tablesJob() *job {
	th := func(tid int32, ref image.ObjRef) image.Thread { return image.Thread{TID: tid, FDTable: ref, FS: 1} }
	table := func(nums ...int32) (t image.FDTable) {
		for _, n := range nums {
			t.FDs = append(t.FDs, image.FD{Num: n, File: 1})
		}
		return t
	}
	return &job{m: &image.Manifest{Files: make([]image.File, 1), FDTables: []image.FDTable{table(1), table(2), table(3)}, Tasks: []image.Task{
		{PID: 10, State: image.TaskRunning, Threads: []image.Thread{th(10, 1), th(11, 3), th(12, 1), th(13, 2), th(14, 3)}},
		{PID: 20, State: image.TaskZombie},
	}}}
}

// TestHoldings: the first thread with a table acts for it, and nobody else.
func TestHoldings(t *testing.T) {
	j := tablesJob()
	all := holdings(j.m, &j.m.Tasks[0])
	if len(all) != 3 || all[0].id != 10 || all[1].id != 11 || all[1].thread != 1 || all[2].id != 13 || all[2].thread != 3 {
		t.Errorf("%+v", all)
	}
	for id, num := range map[int32]int32{10: 1, 11: 3, 12: 0, 13: 2, 14: 0, 20: 0, 99: 0} {
		fds := j.tableOf(id)
		if num == 0 && fds != nil || num != 0 && (len(fds) != 1 || fds[0].Num != num) {
			t.Errorf("table of %d: %v", id, fds)
		}
	}
	if j.processOf(13) != 10 || j.processOf(10) != 10 || j.processOf(99) != 99 {
		t.Error("processOf")
	}
}

// TestLockOfThread: a lock in the table of threads is the first one's, and an image that says otherwise is refused.
func TestLockOfThread(t *testing.T) {
	for pid, ok := range map[int32]bool{10: true, 11: true, 13: true, 12: false, 14: false, 20: false} {
		j := tablesJob()
		j.m.Files[0].Locks = []image.Lock{{Type: image.LockPOSIX, PID: pid, End: 1}}
		if err := j.checkLockers(); (err == nil) != ok {
			t.Errorf("lock of %d: %v", pid, err)
		}
	}
}
