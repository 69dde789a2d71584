package sysv

import (
	"fmt"
	"os"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Wait is what a thread can wait in: a semaphore set or a message queue.
type Wait struct {
	Queue bool
	ID    int32
}

// WaitOf tells what a system call with that number and first argument waits in, if it does.
func WaitOf(nr int64, arg uint64) (w Wait, ok bool) {
	switch nr {
	case unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP:
		return Wait{false, int32(arg)}, true
	case unix.SYS_MSGRCV, unix.SYS_MSGSND:
		return Wait{true, int32(arg)}, true
	}
	return w, false
}

// Waiting tells which of some processes have a thread that waits, by what it waits in.
func Waiting(pids []int) map[Wait]int {
	all := map[Wait]int{}
	for _, pid := range pids {
		for _, tid := range Numbers(fmt.Sprintf("/proc/%d/task", pid)) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
			if err != nil {
				continue // it has ended
			}
			c, err := procfs.ParseSyscall(b)
			if err != nil || c.Running {
				continue
			}
			if w, ok := WaitOf(c.NR, c.Args[0]); ok {
				all[w] = pid
			}
		}
	}
	return all
}

// Numbers lists the entries of a directory of /proc that are numbers, none if it cannot be read.
func Numbers(dir string) []int {
	all, _ := quickread.Numbers(dir)
	return all
}

// Lives reports whether a process lives that can have done something at a time, in seconds: another one may have got
// its id since.
func Lives(pid int, at int64) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	st, err := procfs.ParseStat(b)
	return err == nil && st.State != 'Z' && st.State != 'X' && StartedBefore(&st, at)
}

// StartedBefore reports whether a process was there at a time, in seconds, give or take one.
func StartedBefore(st *procfs.Stat, at int64) bool { return Started(st) <= at+1 }

// Started is when a process began, in seconds.
func Started(st *procfs.Stat) int64 {
	const ticks = 100 // USER_HZ
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return 0
	}
	boot := time.Now().UnixNano() - up.Nano()
	return (boot + int64(st.StartTime)*int64(time.Second)/ticks) / int64(time.Second)
}
