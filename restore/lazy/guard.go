package lazy

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// When the last descriptor of a userfaultfd is closed, the kernel makes zero pages of all that is
// missing: a program whose page server were killed would go on with zeros for data. So there is a
// second process, the guard, that has the same descriptors, and not copies but the same table
// (CLONE_FILES): also that which the kernel puts there while the server reads of a fork(2). It waits for
// the end of the server and then executes ckptfs again, as the one that ends the processes (rescue.go).
//
// A Go program cannot fork, but what is forked may make system calls that return to no Go code
// that needs the runtime. That is all the guard does.

// guard is what the guard process needs, made before it is forked.
type guard struct {
	poll       unix.PollFd // of a pidfd of the server
	path, name *byte
	argv, envv []*byte
	all        [8]byte // a signal set of all signals
	old        [8]byte
}

// newGuard prepares a guard that executes this program with args.
func newGuard(args []string) (*guard, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	g := &guard{poll: unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}}
	if g.path, err = unix.BytePtrFromString("/proc/self/exe"); err != nil {
		return nil, err
	}
	if g.name, err = unix.BytePtrFromString("ckptfs-guard"); err != nil {
		return nil, err
	}
	for _, a := range append([]string{"ckptfs"}, args...) {
		p, err := unix.BytePtrFromString(a)
		if err != nil {
			return nil, err
		}
		g.argv = append(g.argv, p)
	}
	g.argv, g.envv = append(g.argv, nil), []*byte{nil}
	for i := range g.all {
		g.all[i] = 0xff
	}
	return g, nil
}

// start forks the guard.
func (g *guard) start() (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n, errno := g.fork()
	runtime.KeepAlive(g)
	if errno != 0 {
		return 0, fmt.Errorf("fork a guard: %w", errno)
	}
	return int(n), nil
}

// fork returns in the parent only. With all signals blocked the runtime cannot interrupt either.
//
//go:nosplit
//go:norace
func (g *guard) fork() (pid uintptr, errno unix.Errno) {
	const sigsetLen = 8
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&g.all)), uintptr(unsafe.Pointer(&g.old)), sigsetLen, 0, 0)
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 && errno == 0 {
		unix.RawSyscall6(unix.SYS_SETSID, 0, 0, 0, 0, 0, 0)
		unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(g.name)), 0, 0, 0, 0)
		for {
			n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&g.poll)), 1, 0, 0, 0, 0)
			if n == 1 {
				break
			}
		}
		unix.RawSyscall6(unix.SYS_EXECVE, uintptr(unsafe.Pointer(g.path)), uintptr(unsafe.Pointer(&g.argv[0])), uintptr(unsafe.Pointer(&g.envv[0])), 0, 0, 0)
		for { // hold the descriptors at least: who touches what is missing waits, and reads no zeros
			unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&g.old)), 0, sigsetLen, 0, 0)
	return pid, errno
}

// wait waits for the end of a guard.
func waitGuard(pid int) {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// addressOf is where something lies in our memory.
func addressOf[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }
