package ckpt

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
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

// sharers maps every process that shares the object with one earlier in pids to the first of
// those. Processes that vanish meanwhile share nothing.
func sharers(pids []int, typ int) map[int]int {
	sorted := slices.Clone(pids)
	slices.SortStableFunc(sorted, func(a, b int) int { c, _ := kcmpTasks(a, b, typ); return c })
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
// parents maps every process of the tree to its parent; above is the parent of the root.
func checkShared(pids []int, parents map[int]int, above int) []image.Finding {
	var out []image.Finding
	all := pids
	if above > 1 {
		all = append([]int{above}, pids...)
	}
	for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
		first := sharers(all, typ)
		head := func(pid int) int {
			if f, ok := first[pid]; ok {
				return f
			}
			return pid
		}
		for _, pid := range pids {
			other, ok := first[pid]
			inherits := head(parents[pid]) == other && slices.Contains(pids, parents[pid])
			if !ok || inherits && (typ == kcmpFiles || typ == kcmpFS) {
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

// checkShared is checkShared for the processes of a survey.
func (s *survey) checkShared() {
	parents := map[int]int{}
	for _, l := range s.procs {
		parents[l.pid] = l.stat.PPID
	}
	s.findings = append(s.findings, checkShared(s.pids(), parents, s.procs[0].stat.PPID)...)
}
