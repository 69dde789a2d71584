package ckpt

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// The types of kcmp(2) beside files, from linux/kcmp.h.
const (
	kcmpVM      = 1
	kcmpFiles   = 2
	kcmpFS      = 3
	kcmpSighand = 4
)

// sharedKinds names the findings about shared objects.
var sharedKinds = map[int]string{kcmpVM: "shared memory (CLONE_VM)", kcmpFiles: "shared descriptor table (CLONE_FILES)",
	kcmpFS: "shared cwd and umask (CLONE_FS)", kcmpSighand: "shared signal handlers (CLONE_SIGHAND)"}

// kcmpTasks orders two processes by one of the objects that processes may share.
func kcmpTasks(a, b, typ int) (int, error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(typ), 0, 0, 0)
	if errno != 0 {
		return cmp.Compare(a, b), errno
	}
	return [4]int{0, -1, 1, 1}[r&3], nil
}

// kcmpOrder has, by type, processes in the order of the last comparison. The order of what did not change is
// the same the next time, so that a freeze has next to nothing to sort.
type kcmpOrder map[int][]int

// sharers maps every process that shares the object with one earlier in pids to the first of
// those. Processes that vanish meanwhile share nothing.
func (o kcmpOrder) sharers(pids []int, typ int) map[int]int {
	place := make(map[int]int, len(pids))
	for i, pid := range pids {
		place[pid] = i
	}
	sorted := make([]int, 0, len(pids))
	known := make(map[int]bool, len(pids))
	for _, pid := range slices.Concat(o[typ], pids) {
		if _, ok := place[pid]; ok && !known[pid] {
			sorted, known[pid] = append(sorted, pid), true
		}
	}
	slices.SortFunc(sorted, func(a, b int) int {
		c, _ := kcmpTasks(a, b, typ)
		return cmp.Or(c, cmp.Compare(place[a], place[b]))
	})
	o[typ] = sorted
	first := map[int]int{}
	for i := 1; i < len(sorted); i++ {
		if c, err := kcmpTasks(sorted[i-1], sorted[i], typ); err != nil || c != 0 {
			continue
		}
		head := sorted[i-1]
		if f, ok := first[head]; ok {
			head = f
		}
		first[sorted[i]] = head
	}
	return first
}

// checkShared refuses processes that share what only threads may share, or that a restore
// could not hand down from parent to child: it makes a process that shares its parent's
// descriptor table or directories by clone(2), and there is no other way.
//
// stats has every process of the tree; above is the parent of the root.
func (o kcmpOrder) checkShared(pids []int, stats family, above int) []image.Finding {
	var out []image.Finding
	all := pids
	if above > 1 {
		all = append([]int{above}, pids...)
	}
	for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
		first := o.sharers(all, typ)
		head := func(pid int) int {
			if f, ok := first[pid]; ok {
				return f
			}
			return pid
		}
		for _, pid := range pids {
			other, ok := first[pid]
			parent := stats[pid].PPID
			inherits := head(parent) == other && slices.Contains(pids, parent)
			if !ok || inherits && (typ == kcmpFiles || typ == kcmpFS) && !stats.adopted(pid) {
				continue
			}
			if inherits && (typ == kcmpFiles || typ == kcmpFS) {
				out = append(out, image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: sharedKinds[typ],
					What:   fmt.Sprintf("it shares it with its parent, pid %d, but is in session %d, where that never was: nobody can make such a process", parent, stats[pid].SID),
					Remedy: "wait until one of them ends or calls exec"})
				continue
			}
			if slices.Contains(pids, other) {
				pid, other = other, pid
			}
			out = append(out, image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: sharedKinds[typ],
				What: fmt.Sprintf("it shares it with pid %d without being a thread of it", other), Remedy: "wait until one of them ends or calls exec"})
		}
	}
	return out
}

// family has the stat of every process of a tree.
type family map[int]*procfs.Stat

// adopted reports whether a process cannot have been forked by its parent: it is in a session that it does not
// lead, and neither was its parent ever. That has been in older sessions than the one that it leads: those with
// a process that does not descend from it.
func (f family) adopted(pid int) bool {
	st := f[pid]
	parent := f[st.PPID]
	if st.SID == pid || st.SID == parent.SID {
		return false
	}
	if parent.SID != parent.PID {
		return true
	}
	for other, o := range f {
		if leader := f[st.SID]; leader != nil {
			other = leader.PID
		}
		if o.SID == st.SID && !f.below(other, parent.PID) {
			return false
		}
	}
	return true
}

// below reports whether a process descends from another.
func (f family) below(pid, top int) bool {
	for st := f[pid]; st != nil; st = f[st.PPID] {
		if st.PPID == top {
			return true
		}
	}
	return false
}

// checkShared is checkShared for the processes of a survey.
func (s *survey) checkShared() {
	stats := family{}
	for _, l := range s.procs {
		stats[l.pid] = &l.stat
	}
	s.findings = append(s.findings, s.order.checkShared(s.pids(), stats, s.procs[0].stat.PPID)...)
}
