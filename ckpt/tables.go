package ckpt

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// A thread can have another descriptor table than its process (unshare(2) with CLONE_FILES). Such
// a table goes by the id of the first thread that has it: /proc/TID/fd, kcmp(2) and a pidfd of the thread
// work as with a process, so that all that asks for files by pid can be asked for those of the thread.

// tables tells which descriptor tables a tree has.
type tables struct {
	ids     []int       // the first process or thread that has each, by which it goes; that of a process before those of its threads
	first   map[int]int // the others, processes and threads with another table than their process, and the first one
	own     map[int]int // the process of every thread with another table than that
	workers map[int]int // the process of every thread that the kernel runs for an io_uring, with another table
}

// findTables finds the tables of processes; threads lists those of each.
func (o kcmpOrder) findTables(pids []int, threads func(pid int) []int) *tables {
	t := &tables{own: map[int]int{}, workers: map[int]int{}}
	var all []int
	for _, pid := range pids {
		all = append(all, pid)
		for _, tid := range threads(pid) {
			if c, err := kcmpTasks(pid, tid, kcmpFiles); tid == pid || err != nil || c == 0 || ending(tid) {
				continue // what ends has no table
			}
			if st, err := readStat(tid); err == nil && st.Flags&task.IOWorker != 0 {
				t.workers[tid] = pid
			} else if err == nil {
				all, t.own[tid] = append(all, tid), pid
			}
		}
	}
	t.first = o.sharers(all, kcmpFiles)
	t.ids = slices.DeleteFunc(all, func(id int) bool { return t.first[id] != 0 })
	return t
}

// liveThreads is threads for findTables, of processes that run.
func liveThreads(pid int) []int {
	tids, err := threads(pid)
	if err != nil {
		return nil // it vanished; whoever needs it finds out
	}
	return tids
}

// frozenThreads is threads for findTables, of a tree that stands still.
func frozenThreads(procs []*proc) func(pid int) []int {
	tids := map[int][]int{}
	for _, p := range procs {
		for _, th := range p.threads {
			tids[p.pid] = append(tids[p.pid], th.TID)
		}
	}
	return func(pid int) []int { return tids[pid] }
}

// user is the id under which a thread has its table: its own, or that of its process.
func (t *tables) user(pid, tid int) int {
	if t.own[tid] != 0 {
		return tid
	}
	return pid
}

// owner is the process of a thread with its own table, or the process itself.
func (t *tables) owner(id int) int {
	if pid := t.own[id]; pid != 0 {
		return pid
	}
	return id
}

// ownRefs gives the tables of threads their places in an image: behind one for each of n processes.
func (t *tables) ownRefs(n int, refs map[int]image.ObjRef) {
	for _, id := range t.ids {
		if t.own[id] != 0 {
			n++
			refs[id] = image.ObjRef(n)
		}
	}
}

// check refuses tables of threads that others than threads of their process have, since a restore could not
// hand them on, and all of them where the kernel shows them to nobody. above is the parent of the tree's root.
func (t *tables) check(above int) []image.Finding {
	var out []image.Finding
	refuse := func(tid int, what, remedy string) {
		out = append(out, image.Finding{Severity: image.Refuse, PID: int32(cmp.Or(t.own[tid], t.workers[tid])), TID: int32(tid), FD: image.NoFD,
			Kind: "own descriptor table", What: what, Remedy: remedy})
	}
	for _, tid := range slices.Sorted(maps.Keys(t.own)) { // the same order each time: see steadyLook
		pid := t.own[tid]
		if fd, err := unix.PidfdOpen(tid, pidfdThread); errors.Is(err, unix.EINVAL) {
			refuse(tid, "the thread has file descriptors of its own, which only Linux 6.9 or newer gives to others", "let the program make its threads with CLONE_FILES and without unshare(2)")
		} else {
			closeFD(fd)
		}
		if c, err := kcmpTasks(above, tid, kcmpFiles); above > 1 && err == nil && c == 0 {
			refuse(tid, fmt.Sprintf("the thread has the file descriptors of pid %d, not those of its process", above), "wait until one of them ends or calls exec")
		} else if first := t.first[tid]; first != 0 && t.owner(first) != pid {
			refuse(tid, fmt.Sprintf("the thread has the file descriptors of pid %d, not those of its process", t.owner(first)), "wait until one of them ends or calls exec")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.first)) {
		first := t.first[id]
		if t.own[id] == 0 && t.own[first] != 0 {
			refuse(first, fmt.Sprintf("the thread has file descriptors of its own, and pid %d shares them", id), "wait until one of them ends or calls exec")
		}
	}
	for _, tid := range slices.Sorted(maps.Keys(t.workers)) {
		refuse(tid, "the kernel works for an io_uring that a thread with file descriptors of its own has made", "close the io_uring before the checkpoint")
	}
	return out
}

// pidfdThread is PIDFD_THREAD of linux/pidfd.h, since Linux 6.9.
const pidfdThread = unix.O_EXCL

// pidfd opens a pidfd of the process or thread that a table goes by.
func (t *tables) pidfd(id int) (int, error) {
	if t.own[id] != 0 {
		return unix.PidfdOpen(id, pidfdThread)
	}
	return unix.PidfdOpen(id, 0)
}

// checkFile refuses what cannot be made again of a file that a thread has in its own table.
func (t *tables) checkFile(f *kind.Found) []image.Finding {
	at := slices.IndexFunc(f.Slots, func(sl kind.Slot) bool { return t.own[int(sl.PID)] != 0 })
	if at < 0 || f.Carrier != nil {
		return nil
	}
	refuse := func(what, remedy string) []image.Finding {
		return []image.Finding{{Severity: image.Refuse, PID: f.Slots[at].PID, FD: f.Slots[at].Num, Kind: f.Link, What: what, Remedy: remedy}}
	}
	if f.Link == kind.RingLink {
		return refuse("an io_uring is kept only if no thread with file descriptors of its own has it", "close it in that thread before the checkpoint")
	}
	for _, l := range f.Locks {
		if l.Type == "LEASE" {
			return refuse("it holds a lease, and a thread with file descriptors of its own has it: which of the numbers the signal about the lease names cannot be read",
				"give the lease back (F_SETLEASE with F_UNLCK) before the checkpoint")
		}
	}
	return nil
}

// byThread makes findings about files in the table of a thread name its process, too.
func (t *tables) byThread(all []image.Finding) []image.Finding {
	for i := range all {
		if pid := t.own[int(all[i].PID)]; pid != 0 {
			all[i].PID, all[i].TID = int32(pid), all[i].PID
		}
	}
	return all
}
