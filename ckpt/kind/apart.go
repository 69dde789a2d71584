package kind

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

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

// apartRun is what a process of runApart works on. It lies on the heap.
type apartRun struct {
	hold  []call // see holdCalls
	alive [3]call
	path  []byte // for alive, and what is read there
	text  []byte
	calls []call
	drain *queues // instead of calls
}

//go:noescape
func apart(r *apartRun) (pid int)

// runApart runs system calls, all of them whether one fails or not, in a process of their own that
// shares our memory and descriptors. They are run to the end even if we, or our process group, are
// killed meanwhile: so a setting of a live file can be changed and put back. What their arguments
// point at must be on the heap, and be kept alive by the caller.
func (s *Scene) runApart(calls []call) error {
	if len(calls) == 0 {
		return nil
	}
	return s.newApart(calls, nil).run()
}

// newApart prepares a process of runApart. If we are killed, the kernel lets go of all that our threads trace:
// the tree would run on with the settings that it must not see. So that process traces those threads
// itself. They end no further than PTRACE_EVENT_EXIT, which is before their tracees are let go, until it
// has ended, too. Without the right to (somebody traces us) it goes on.
//
// That comes too late if we are being killed already. Then field 52 of our stat says so (proc_pid_stat(5):
// exit_code, which the kernel sets before any thread gets to know), and nothing is changed.
func (s *Scene) newApart(calls []call, drain *queues) *apartRun {
	r := &apartRun{calls: calls, drain: drain, hold: []call{{nr: unix.SYS_SETPGID}}, text: make([]byte, 2048),
		path: fmt.Appendf(nil, "/proc/%d/task/%[1]d/stat\x00", os.Getpid())}
	for _, tid := range s.Tracers {
		r.hold = append(r.hold, call{nr: unix.SYS_PTRACE, args: [6]uintptr{unix.PTRACE_SEIZE, uintptr(tid), 0, unix.PTRACE_O_TRACEEXIT}})
	}
	at := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	here := unix.AT_FDCWD
	r.alive[0] = call{nr: unix.SYS_OPENAT, args: [6]uintptr{uintptr(here), at(r.path), unix.O_RDONLY | unix.O_CLOEXEC}}
	r.alive[1] = call{nr: unix.SYS_READ, args: [6]uintptr{0, at(r.text), uintptr(len(r.text))}}
	r.alive[2] = call{nr: unix.SYS_CLOSE}
	return r
}

// run starts the process and waits for its end.
func (r *apartRun) run() error {
	pid := apart(r)
	runtime.KeepAlive(r)
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

// apartChild is called by apart_amd64.s in the child, which shares our memory and the stack of the thread that
// waits for it (vfork), as package syscall starts programs: neither this function nor one that it calls may grow
// the stack, allocate, store pointers or call the runtime. Nothing but SIGKILL for that child itself stops it.
//
//lint:ignore U1000 no Go code calls it
//go:nosplit
//go:norace
//go:nocheckptr
func apartChild(r *apartRun) {
	for i := range r.hold {
		r.hold[i].make()
	}
	if !r.parentLives() {
		return
	}
	if r.drain != nil {
		r.drain.drain()
		return
	}
	for i := range r.calls {
		r.calls[i].make()
	}
}

// make makes the call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *call) make() {
	ret, _, errno := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
	c.ret = int(ret)
	if errno != 0 {
		c.ret = -int(errno)
	}
}

// parentLives reports whether nobody has killed our parent: it has a stat, and the last number there is 0. If it cannot
// be read for another reason (no descriptor is left) it counts as alive, since the calls would be missed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (r *apartRun) parentLives() bool {
	fd := &r.alive[0]
	fd.make()
	if fd.ret < 0 {
		return fd.ret != -int(unix.ENOENT) && fd.ret != -int(unix.ESRCH)
	}
	r.alive[1].args[0], r.alive[2].args[0] = uintptr(fd.ret), uintptr(fd.ret)
	r.alive[1].make()
	r.alive[2].make()
	n := r.alive[1].ret
	if n < 3 || n > len(r.text) {
		return n != -int(unix.ESRCH)
	}
	return r.text[n-3] == ' ' && r.text[n-2] == '0' && r.text[n-1] == '\n'
}
