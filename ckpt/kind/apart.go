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
// shares our memory and descriptors. They are run to the end even if we, or our process group, are
// killed meanwhile: so a setting of a live file can be changed and put back. What their arguments
// point at must be on the heap, and be kept alive by the caller.
func (s *Scene) runApart(calls []call) error {
	if len(calls) == 0 {
		return nil
	}
	all := append(s.holdCalls(), calls...)
	pid := apart(&all[0], len(all))
	copy(calls, all[len(all)-len(calls):])
	runtime.KeepAlive(calls)
	return waitApart(pid)
}

// holdCalls are the calls that come first in a process of runApart. If we are killed, the kernel lets go
// of all that our threads trace: the tree would run on with the settings that it must not see. So that
// process traces those threads itself. They end no further than PTRACE_EVENT_EXIT, which is before their
// tracees are let go, until it has ended, too. Without the right to (somebody traces us) it goes on.
func (s *Scene) holdCalls() []call {
	calls := []call{{nr: unix.SYS_SETPGID}}
	for _, tid := range s.Tracers {
		calls = append(calls, call{nr: unix.SYS_PTRACE, args: [6]uintptr{unix.PTRACE_SEIZE, uintptr(tid), 0, unix.PTRACE_O_TRACEEXIT}})
	}
	return calls
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
