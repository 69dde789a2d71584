package ckpt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

const pfKthread = 0x00200000 // PF_KTHREAD of linux/sched.h, in the flags of /proc/PID/stat

// procPath is /proc/PID/name.
func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// gone reports whether err means that the process or descriptor vanished while it was read,
// which is normal as long as nothing is frozen.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF)
}

// readStat reads /proc/PID/stat.
func readStat(pid int) (procfs.Stat, error) {
	b, err := quickread.File(procPath(pid, "stat"))
	if err != nil {
		return procfs.Stat{}, err
	}
	return procfs.ParseStat(b)
}

// readStatus reads /proc/PID/status.
func readStatus(pid int) (procfs.Status, error) {
	b, err := quickread.File(procPath(pid, "status"))
	if err != nil {
		return procfs.Status{}, err
	}
	return procfs.ParseStatus(b)
}

// threads lists the thread ids of a process, the leader first.
func threads(pid int) ([]int, error) {
	tids, err := quickread.Numbers(procPath(pid, "task"))
	if err != nil {
		return nil, err
	}
	if i := slices.Index(tids, pid); i > 0 {
		tids = slices.Insert(slices.Delete(tids, i, i+1), 0, pid)
	}
	return tids, nil
}

// children lists the child processes of all threads of a process, zombies too, ascending.
func children(pid int) ([]int, error) {
	tids, err := threads(pid)
	if err != nil {
		return nil, err
	}
	var out []int
	known := briefs(pid, tids)
	for _, tid := range tids {
		if b, ok := known[tid]; ok && !b.Children {
			continue
		}
		f := procPath(pid, "task/"+strconv.Itoa(tid)+"/children")
		b, err := quickread.File(f)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		kids, err := procfs.ParsePIDs(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, kids...)
	}
	slices.Sort(out)
	return out, nil
}

// worthBriefs is for how many threads the kernel's memory is asked instead of a file of /proc for each.
const worthBriefs = 32

// briefs is what the kernel's memory tells of threads; nil: it was not asked, or did not answer.
func briefs(pid int, tids []int) map[int]kmem.ThreadBrief {
	if len(tids) < worthBriefs {
		return nil
	}
	m, err := kmem.Open()
	if err != nil {
		return nil
	}
	known, err := m.ThreadBriefs(pid, 2*len(tids))
	if err != nil {
		return nil
	}
	return known
}

// Tree returns the pids of a process and all its descendants, every parent before its
// children. Nothing is stopped: the tree may have changed by the time it returns.
func Tree(pid int) ([]int, error) {
	if err := rootAllowed(pid); err != nil {
		return nil, err
	}
	return descend(pid)
}

func descend(pid int) ([]int, error) {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		kids, err := children(pids[i])
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("children of pid %d: %w", pids[i], err)
		}
		pids = append(pids, kids...)
	}
	return pids, nil
}

// rootAllowed refuses what can never be the root of a checkpoint.
func rootAllowed(pid int) error {
	st, err := readStat(pid)
	switch {
	case gone(err):
		return &TargetError{pid, ErrNoProcess, "see ps for what runs"}
	case err != nil:
		return &TargetError{pid, err, ""}
	case st.Flags&pfKthread != 0:
		return &TargetError{pid, ErrKernelThread, "only user processes have state to keep"}
	case pid == 1:
		return &TargetError{pid, ErrInit, "checkpoint the service you mean, by its own pid"}
	case st.State == 'Z' || st.State == 'X':
		return &TargetError{pid, ErrZombie, fmt.Sprintf("nothing of it is left; its parent is pid %d", st.PPID)}
	}
	if status, err := readStatus(pid); err == nil && status.Tgid != pid {
		return &TargetError{pid, ErrThread, fmt.Sprintf("name its process, pid %d", status.Tgid)}
	}
	return nil
}

// refuseSelf fails if this process is part of the tree: it would stop itself.
func refuseSelf(root int, pids []int) error {
	if slices.Contains(pids, os.Getpid()) {
		return &TargetError{root, ErrSelf, fromOutside(root)}
	}
	return nil
}

// fromOutside says how to take a checkpoint of a tree that ckptfs was started in. setsid(1) alone
// makes it no other's child; with -f it forks and ends, and ckptfs goes to init.
func fromOutside(root int) string {
	return fmt.Sprintf("start it with setsid -f, or from another shell: setsid -f ckptfs dump %d -o FILE", root)
}
