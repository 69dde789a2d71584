package main

import (
	"context"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter waits for the end of a process that is not our child.
type waiter struct{ pidfd int }

// newWaiter opens a pidfd of the process.
func newWaiter(pid int) (*waiter, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("waiting for pid %d: %w", pid, err)
	}
	return &waiter{fd}, nil
}

func (w *waiter) close() { _ = unix.Close(w.pidfd) }

// reapGrace is how long a process that has exited may stay a zombie before its exit code
// counts as unknown.
const reapGrace = 2 * time.Second

// wait blocks until the process has exited and returns its exit code as a shell would see
// it, or 0 where the kernel does not tell.
func (w *waiter) wait(ctx context.Context) (int, error) {
	// POLLIN: it has exited. POLLHUP: it has been reaped, so that its status is on record.
	if err := w.poll(ctx, unix.POLLIN|unix.POLLHUP, 0); err != nil {
		return 0, err
	}
	if err := w.poll(ctx, unix.POLLHUP, reapGrace); err != nil {
		return 0, err
	}
	return w.exitCode(), nil
}

// poll waits for one of the events, for at most limit if that is not 0.
func (w *waiter) poll(ctx context.Context, events int16, limit time.Duration) error {
	const step = 100 * time.Millisecond // how long ctrl-C may take
	for waited := time.Duration(0); limit == 0 || waited < limit; waited += step {
		// POLLHUP is reported whether asked for or not, and needs no bit.
		fds := []unix.PollFd{{Fd: int32(w.pidfd), Events: events &^ unix.POLLHUP}}
		_, err := unix.Poll(fds, int(step.Milliseconds()))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("poll of a pidfd: %w", err)
		case err == nil && fds[0].Revents&(events|unix.POLLHUP) != 0:
			return nil
		}
	}
	return nil
}

// exitCode asks the kernel for the wait status (PIDFD_GET_INFO, Linux 6.15).
func (w *waiter) exitCode() int {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0
	}
	ws := unix.WaitStatus(info.Exit_code)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
