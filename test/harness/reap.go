package harness

import (
	"os/exec"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// children knows which of our children os/exec waits for; all others are orphans that were
// given to us as their subreaper. The lock is held while a child is started, so that none is
// taken for an orphan before it is known.
var children = struct {
	sync.Mutex
	ours    map[int]bool
	orphans map[int]unix.WaitStatus
}{ours: map[int]bool{}, orphans: map[int]unix.WaitStatus{}}

// start starts a command and keeps it from the reaper.
func start(c *exec.Cmd) error {
	children.Lock()
	defer children.Unlock()
	if err := c.Start(); err != nil {
		return err
	}
	children.ours[c.Process.Pid] = true
	return nil
}

// wait waits for a command that was started with start.
func wait(c *exec.Cmd) error {
	err := c.Wait()
	children.Lock()
	defer children.Unlock()
	delete(children.ours, c.Process.Pid)
	return err
}

// orphan returns the status with which a restored process ended, once it was reaped.
func orphan(pid int) (unix.WaitStatus, bool) {
	children.Lock()
	defer children.Unlock()
	s, ok := children.orphans[pid]
	return s, ok
}

// forget drops what is known of an earlier process with this pid.
func forget(pid int) {
	children.Lock()
	defer children.Unlock()
	delete(children.orphans, pid)
}

// reap collects orphans for ever.
func reap() {
	for {
		if !reapOne() {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func reapOne() bool {
	children.Lock()
	defer children.Unlock()
	pid := peek()
	if pid <= 0 || children.ours[pid] {
		return false
	}
	var status unix.WaitStatus
	if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil || got != pid {
		return false
	}
	children.orphans[pid] = status
	return true
}

// peek returns a child that has ended, without reaping it, or 0.
func peek() int {
	// siginfo_t is 128 bytes; si_pid stands behind signo, errno, code and padding.
	var si [32]int32
	const pidAt = 4
	err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&si)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil {
		return 0
	}
	return int(si[pidAt])
}
