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
	if sp.pid.Load() != 0 || tid == 0 {
		return
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return // it was killed
	}
	if st, err := procfs.ParseStatus(b); err == nil {
		s.know(sp, st.Tgid)
	}
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
