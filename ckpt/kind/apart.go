package kind

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// call is one system call of runApart.
type call struct {
	nr   uintptr
	args [6]uintptr
	ret  int // what it returned; -errno: it failed
}

// err is the error of the call, or nil.
func (c *call) err() error {
	if c.ret < 0 && c.ret > -4096 {
		return unix.Errno(-c.ret)
	}
	return nil
}

//go:noescape
func apartQueues(q *queues) (pid int)

//go:noescape
func apart(calls *call, n int) (pid int)

// runApart runs system calls, all of them whether one fails or not, in a process of their own that
// shares our memory and descriptors. They are run to the end even if we are killed meanwhile: so a
// setting of a live file can be changed and put back. What their arguments point at must be on the
// heap, and be kept alive by the caller.
func runApart(calls []call) error {
	if len(calls) == 0 {
		return nil
	}
	pid := apart(&calls[0], len(calls))
	runtime.KeepAlive(calls)
	return waitApart(pid)
}

// waitApart waits for the child of apart.
func waitApart(pid int) error {
	if pid < 0 {
		return fmt.Errorf("clone: %w", unix.Errno(-pid))
	}
	for {
		_, err := unix.Wait4(pid, nil, unix.WALL, nil)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("wait4 of pid %d: %w", pid, err)
		}
	}
}
