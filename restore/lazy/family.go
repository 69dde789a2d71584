package lazy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// The kernel hands us the userfaultfd of a child that is forked, and does not say who it is. It is
// served all the same; its pid is for people, for a checkpoint that wants to know what is lazy,
// and for ending it.

// learn finds out who a space belongs to from a thread that waits for a page of it.
func (s *server) learn(sp *space, tid int) {
	if sp.pid.Load() != 0 {
		return
	}
	if pid := owner(tid); pid != 0 {
		s.know(sp, pid)
	}
}

// owner is the process of a thread that waits for a page, or 0. The kernel says its id as the thread itself sees it,
// which is another one if it is in a pid namespace below ours.
func owner(tid int) int {
	if pid := owns(tid, tid); pid != 0 {
		return pid
	}
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*") // the pattern is right
	for _, t := range tasks {
		outer, err := strconv.Atoi(filepath.Base(t))
		if err != nil || outer == tid {
			continue
		}
		if pid := owns(outer, tid); pid != 0 {
			return pid
		}
	}
	return 0
}

// owns returns the process of the thread that is outer to us if it has an id for itself and memory that is still to
// come, or 0.
func owns(outer, inner int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", outer))
	if err != nil {
		return 0 // it was killed
	}
	st, err := procfs.ParseStatus(b)
	if err != nil {
		return 0
	}
	if n := len(st.NSpid); n > 0 && st.NSpid[n-1] == inner && len(flagged(st.Tgid, "um")) > 0 {
		return st.Tgid
	}
	return 0
}

// know notes who a space belongs to.
func (s *server) know(sp *space, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	sp.mu.Lock()
	first := sp.pidfd < 0 && !sp.over
	if first {
		sp.pidfd = fd
		sp.pid.Store(int32(pid))
	}
	sp.mu.Unlock()
	if !first {
		_ = unix.Close(fd) // only opened
		return
	}
	if err := keepOver(fd); err != nil {
		s.logf("pid %d: %v", pid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pids = append(s.pids, pid)
}

// identify looks for a child among the children of its parent.
func (s *server) identify(child *space, parent int) {
	const tries, wait = 5, 2 * time.Millisecond
	for range tries {
		for _, pid := range children(parent) {
			s.mu.Lock()
			known := slices.Contains(s.pids, pid)
			s.mu.Unlock()
			if !known && len(flagged(pid, "um")) > 0 {
				s.know(child, pid)
				return
			}
		}
		time.Sleep(wait)
	}
}

// children lists the children of all threads of a process.
func children(pid int) (all []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread has ended
		}
		for _, w := range bytes.Fields(b) {
			if n, err := strconv.Atoi(string(w)); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// wiped lists the memory of a process that its children get as zeros (MADV_WIPEONFORK).
func wiped(pid int) []span { return flagged(pid, "wf") }

// flagged lists the mappings of a process that have a flag of VmFlags; of one that has ended there are none.
func flagged(pid int, flag string) (all []span) {
	if pid == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil
	}
	maps, err := procfs.ParseSmaps(b)
	if err != nil {
		return nil
	}
	for i := range maps {
		if maps[i].HasFlag(flag) {
			all = append(all, span{maps[i].Start, maps[i].End})
		}
	}
	return all
}
