package sysv

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// SemCalls and MsgCalls are the system calls that wait in a semaphore set and in a queue, whose id is the first
// argument.
var (
	SemCalls = []int64{unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP}
	MsgCalls = []int64{unix.SYS_MSGRCV, unix.SYS_MSGSND}
)

// Waits returns the first of some processes that has a thread which waits in one of these calls with that id, or 0.
func Waits(pids []int, calls []int64, id int32) int {
	for _, pid := range pids {
		for _, tid := range Numbers(fmt.Sprintf("/proc/%d/task", pid)) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
			if err != nil {
				continue // it has ended
			}
			c, err := procfs.ParseSyscall(b)
			if err == nil && !c.Running && slices.Contains(calls, c.NR) && int32(c.Args[0]) == id {
				return pid
			}
		}
	}
	return 0
}

// Numbers lists the entries of a directory of /proc that are numbers, none if it cannot be read.
func Numbers(dir string) (out []int) {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close() // opened for reading
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if v, err := strconv.Atoi(n); err == nil {
			out = append(out, v)
		}
	}
	return out
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
func StartedBefore(st *procfs.Stat, at int64) bool {
	const ticks = 100 // USER_HZ
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return true
	}
	boot := time.Now().UnixNano() - up.Nano()
	return (boot+int64(st.StartTime)*int64(time.Second)/ticks)/int64(time.Second) <= at+1
}
