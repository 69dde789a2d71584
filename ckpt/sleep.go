package ckpt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// A thread in nanosleep, poll or a futex wait with a timeout goes on after a checkpoint
// through the kernel's restart block, which knows when the sleep ends. A restored thread has
// no restart block: the restore has to know what was left of the sleep. The kernel tells
// nobody directly, but se.exec_start of /proc/PID/task/TID/sched says about when a thread went
// to sleep, and /proc/timer_list has the exact expiry of every sleep without saying whose.

const (
	sysRestart     = 219                   // restart_syscall: an earlier stop has interrupted the same sleep
	matchWindow    = 30 * time.Millisecond // how far a guess may be from its timer
	futexWait      = 0                     // FUTEX_WAIT of linux/futex.h: relative timeout
	futexCmdMask   = 0x7f                  // without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
	fullRestart    = -1                    // image.Blocked.Remaining: unknown
	withoutTimeout = -2                    // image.Blocked.Remaining: none, or absolute
)

// sleeper is a thread that was asleep in a timed system call just before the freeze.
type sleeper struct {
	nr      uint32
	args    [6]uint64
	timeout time.Duration // as it was asked for; 0: none, or absolute
	again   bool          // restarted after an earlier stop: the timeout counts from before that
	expiry  int64         // CLOCK_MONOTONIC, ns; 0: not known
	slack   int64         // of the thread's timers, ns
}

// sleepers are the timed sleeps of a tree, by thread id.
type sleepers struct {
	by map[int]*sleeper
}

// findSleepers looks at every thread of the processes. It must run before the freeze: an
// interrupted sleep is in no list any more. What cannot be found out stays unknown.
func findSleepers(pids []int) *sleepers {
	s := &sleepers{by: map[int]*sleeper{}}
	for _, pid := range pids {
		tids, _ := threads(pid)
		for _, tid := range tids {
			if sl := sleeping(pid, tid); sl != nil {
				s.by[tid] = sl
			}
		}
	}
	s.findExpiries(pids)
	return s
}

// sleeping tells which timed sleep a thread is in, or nil.
func sleeping(pid, tid int) *sleeper {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
	if err != nil {
		return nil
	}
	sc, err := procfs.ParseSyscall(b)
	if err != nil || sc.Running || sc.NR < 0 {
		return nil
	}
	nr := uint32(sc.NR)
	if nr == sysRestart {
		if nr = restarted(pid, sc.PC); nr == 0 {
			nr = waitsIn(wchan(pid, tid), &sc)
		}
	}
	switch nr {
	case unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_POLL, unix.SYS_FUTEX:
	default:
		return nil
	}
	sl := &sleeper{nr: nr, args: sc.Args, again: sc.NR == sysRestart}
	sl.timeout = sl.asked(pid)
	return sl
}

// waitsIn tells by the kernel function in which a thread waits what it restarts. A restarted
// nanosleep is shown in the system call entry itself.
func waitsIn(wchan string, sc *procfs.Syscall) uint32 {
	switch {
	case strings.HasPrefix(wchan, "futex"):
		return unix.SYS_FUTEX
	case strings.HasPrefix(wchan, "poll_schedule"), strings.HasPrefix(wchan, "do_poll"), strings.HasPrefix(wchan, "do_sys_poll"):
		return unix.SYS_POLL
	case strings.HasPrefix(wchan, "hrtimer_nanosleep"), strings.HasPrefix(wchan, "do_nanosleep"), wchan == "do_syscall_64":
		if sc.Args[0] < lowestPointer { // a clock, not the address of a timespec
			return unix.SYS_CLOCK_NANOSLEEP
		}
		return unix.SYS_NANOSLEEP
	}
	return 0
}

// lowestPointer is below every address that a program can map (vm.mmap_min_addr).
const lowestPointer = 4096

// asked is the timeout that the thread asked for, 0 if there is none or it is absolute.
func (sl *sleeper) asked(pid int) time.Duration {
	a := sl.args
	switch sl.nr {
	case unix.SYS_NANOSLEEP:
		return timespecAt(pid, a[0])
	case unix.SYS_CLOCK_NANOSLEEP:
		if a[1]&unix.TIMER_ABSTIME != 0 {
			return 0
		}
		return timespecAt(pid, a[2])
	case unix.SYS_POLL:
		if ms := int32(a[2]); ms > 0 {
			return time.Duration(ms) * time.Millisecond
		}
	case unix.SYS_FUTEX:
		if a[1]&futexCmdMask == futexWait && a[3] != 0 {
			return timespecAt(pid, a[3])
		}
	}
	return 0
}

// timespecAt reads a struct timespec of the process.
func timespecAt(pid int, addr uint64) time.Duration {
	b, ok := peek(pid, addr, 16)
	if !ok {
		return 0
	}
	sec, nsec := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if sec > math.MaxInt64/1_000_000_000-1 || nsec >= 1e9 {
		return math.MaxInt64
	}
	return time.Duration(sec*1e9 + nsec)
}

// peek reads memory of a process that runs.
func peek(pid int, addr uint64, n int) ([]byte, bool) {
	b := make([]byte, n)
	local := []unix.Iovec{{Base: &b[0], Len: uint64(n)}}
	got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: n}}, 0)
	return b, err == nil && got == n
}

// restarted finds out which call a thread in restart_syscall made at first: the number is
// gone from the registers, but most callers load it as a constant just before the syscall
// instruction that pc is behind. 0 if it can't be told.
func restarted(pid int, pc uint64) uint32 {
	const back = 64
	b, ok := peek(pid, pc-back, back)
	if !ok || !bytes.HasSuffix(b, []byte{0x0f, 0x05}) { // syscall
		return 0
	}
	for i := back - 7; i >= 0; i-- { // the last mov $nr,%eax (b8 imm32) that loads a call we know
		if b[i] != 0xb8 {
			continue
		}
		switch nr := binary.LittleEndian.Uint32(b[i+1:]); nr {
		case unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_POLL, unix.SYS_FUTEX:
			return nr
		}
	}
	return 0
}

// findExpiries gives each sleeper the moment at which its sleep ends.
func (s *sleepers) findExpiries(pids []int) {
	if len(s.by) == 0 {
		return
	}
	var timers []procfs.HRTimer
	if b, err := quickread.File("/proc/timer_list"); err == nil {
		timers, _ = procfs.ParseTimerList(b) // without it the guesses have to do
	}
	timers = slices.DeleteFunc(timers, func(t procfs.HRTimer) bool { return t.Function != "hrtimer_wakeup" || t.Clock%4 != 0 })
	clocks := newCPUClocks()
	defer clocks.close()
	for _, pid := range pids {
		tids, _ := threads(pid)
		for _, tid := range tids {
			if sl := s.by[tid]; sl != nil && sl.timeout > 0 && sl.timeout < math.MaxInt64/2 {
				sl.guess(pid, tid, clocks)
			}
		}
	}
	s.claim(timers)
}

// guess estimates when the sleep ends from when the thread was last on a CPU. The clock of
// se.exec_start leaves out the time that interrupts and the hypervisor took, so the guess is
// late, never early: nobody minds a sleep that lasts a little longer.
func (sl *sleeper) guess(pid, tid int, clocks *cpuClocks) {
	dir := fmt.Sprintf("/proc/%d/task/%d/", pid, tid)
	b, err := quickread.File(dir + "stat")
	if err != nil {
		return
	}
	st, err := procfs.ParseStat(b)
	if err != nil {
		return
	}
	started, ok := execStart(dir + "sched")
	if !ok {
		return
	}
	mono, ref, ok := clocks.read(st.Processor)
	if !ok || ref < started {
		return
	}
	sl.expiry = mono - int64(ref-started) + int64(sl.timeout)
	sl.slack = timerSlack(tid)
}

// claim replaces guesses by the timers they stand for, the surest first. A restarted sleep
// ends earlier than guessed, by all the time before the restart: of the timers that it can
// be, the last one is never too early.
func (s *sleepers) claim(timers []procfs.HRTimer) {
	type match struct {
		sl     *sleeper
		expiry int64
		off    int64 // ns between timer and guess
	}
	var all []match
	for _, sl := range s.by {
		for _, t := range timers {
			off := sl.expiry - t.SoftNS
			if sl.expiry == 0 || !sl.fits(t.HardNS-t.SoftNS) || off < -int64(matchWindow) || off > int64(matchWindow) && !sl.again {
				continue
			}
			all = append(all, match{sl, t.SoftNS, max(off, -off)})
		}
	}
	slices.SortFunc(all, func(a, b match) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.expiry, b.expiry)) })
	taken, done := map[int64]bool{}, map[*sleeper]bool{}
	for _, m := range all {
		if !done[m.sl] && !taken[m.expiry] {
			m.sl.expiry = m.expiry
			taken[m.expiry], done[m.sl] = true, true
		}
	}
}

// fits reports whether a timer with this slack can be the sleep's. Sleeps have the thread's
// slack, or none when they were restarted; poll makes it from the timeout.
func (sl *sleeper) fits(slack int64) bool {
	return sl.nr == unix.SYS_POLL || slack == sl.slack || slack == 0
}

// timerSlack reads the slack of a thread's timers, in ns.
func timerSlack(tid int) int64 {
	b, err := quickread.File(procPath(tid, "timerslack_ns"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return n
}

// cpuClocks reads "now" on the clock of se.exec_start, which differs from CPU to CPU by
// seconds. It moves the calling thread about.
type cpuClocks struct {
	home unix.CPUSet
	ok   bool
}

func newCPUClocks() *cpuClocks {
	runtime.LockOSThread()
	c := &cpuClocks{}
	c.ok = unix.SchedGetaffinity(0, &c.home) == nil
	return c
}

// close puts the thread back.
func (c *cpuClocks) close() {
	if c.ok && unix.SchedSetaffinity(0, &c.home) != nil {
		return // it stays where it is: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
}

// read returns CLOCK_MONOTONIC and the exec_start of a thread that runs at this moment on
// the given CPU. The latter is read first: then what is made of them is late, not early.
func (c *cpuClocks) read(cpu int) (mono int64, exec time.Duration, ok bool) {
	var set unix.CPUSet
	set.Set(cpu)
	if !c.ok || unix.SchedSetaffinity(0, &set) != nil {
		return 0, 0, false
	}
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // updates it; cannot fail
	exec, ok = execStart(fmt.Sprintf("/proc/self/task/%d/sched", unix.Gettid()))
	return clock(unix.CLOCK_MONOTONIC), exec, ok
}

// execStart reads se.exec_start, in ms with six decimals, from a sched file.
func execStart(path string) (time.Duration, bool) {
	b, err := quickread.File(path)
	if err != nil {
		return 0, false // CONFIG_SCHED_DEBUG is off, or the thread is gone
	}
	_, rest, ok := bytes.Cut(b, []byte("se.exec_start"))
	if !ok {
		return 0, false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	ms, err := strconv.ParseFloat(string(bytes.Trim(line, " :\t")), 64)
	return time.Duration(ms * 1e6), err == nil
}

// blocked fills in th.Blocked if only a restart block could continue the thread.
func (s *sleepers) blocked(th *image.Thread, st *ptrace.State) {
	if !st.Restart.FromBlock {
		return
	}
	sl := s.by[int(th.TID)]
	r := &st.Regs
	b := &image.Blocked{NR: uint32(st.Restart.NR), Remaining: fullRestart,
		Args: [6]uint64{r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9}}
	if sl != nil && sl.args == b.Args && (b.NR == sl.nr || b.NR == sysRestart) {
		b.NR = sl.nr
		if sl.expiry != 0 {
			b.Remaining = max(sl.expiry-clock(unix.CLOCK_MONOTONIC), 1)
		}
	}
	switch {
	case b.NR == sysRestart:
		return // nobody knows what it was: the restored thread gets EINTR, as from a signal
	case untimed(b):
		b.Remaining = withoutTimeout
	}
	th.Blocked = b
}

// untimed reports whether a call has no timeout or an absolute one, so that it can be issued
// anew just as it was.
func untimed(b *image.Blocked) bool {
	switch b.NR {
	case unix.SYS_POLL:
		return int32(b.Args[2]) < 0
	case unix.SYS_FUTEX:
		return b.Args[1]&futexCmdMask != futexWait || b.Args[3] == 0
	case unix.SYS_CLOCK_NANOSLEEP:
		return b.Args[1]&unix.TIMER_ABSTIME != 0
	}
	return false
}
