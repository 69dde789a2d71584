package task

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Scheduling policies of sched(7).
const (
	schedNormal   = 0
	schedFIFO     = 1
	schedRR       = 2
	schedBatch    = 3
	schedIdle     = 5
	schedDeadline = 6

	flagResetOnFork = 1 // SCHED_FLAG_RESET_ON_FORK
)

const (
	ioprioWhoProcess = 1
	ioprioClassShift = 13
	cpuSetBytes      = 1024 // 8192 CPUs, the most that x86_64 can be built for
	onlineCPUs       = "/sys/devices/system/cpu/online"
)

func realtime(policy uint32) bool { return policy == schedFIFO || policy == schedRR }

// readSched reads what the scheduler knows about a thread, from outside, but for AllCPUs:
// see markAllCPUs.
func readSched(tid int) (image.Sched, error) {
	var s image.Sched
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return s, fmt.Errorf("sched_getattr: %w", err)
	}
	s.Policy, s.Flags, s.Priority = a.Policy, a.Flags&flagResetOnFork, a.Priority
	if s.Nice, err = niceOf(tid); err != nil {
		return s, err
	}
	if !realtime(a.Policy) {
		if s.Runtime, err = customSlice(a.Runtime); err != nil {
			return s, err
		}
	}
	if s.Affinity, err = affinity(tid); err != nil {
		return s, err
	}
	if s.IOPrio, err = ioPrio(tid); err != nil {
		return s, err
	}
	return s, nil
}

// markAllCPUs finds the threads that may run on every CPU of this machine, which on another one
// means every CPU of that.
func markAllCPUs(all []image.Thread) error {
	online, err := readCPUs()
	if err != nil {
		return err
	}
	for i := range all {
		s := &all[i].Sched
		s.AllCPUs = len(subtract(online, s.Affinity)) == 0
	}
	return nil
}

// niceOf asks getpriority(2), since sched_getattr(2) hides the nice value of a thread that is
// realtime for the moment.
func niceOf(tid int) (int32, error) {
	r, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return 0, fmt.Errorf("getpriority: %w", err)
	}
	return int32(20 - r), nil // the system call returns 40 … 1
}

// customSlice is the time slice if the thread has set one, or 0. The kernel (since 6.12) shows
// the default slice too, which depends on the machine; ours is the default.
func customSlice(slice uint64) (uint64, error) {
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return 0, fmt.Errorf("sched_getattr of this process: %w", err)
	}
	if slice == own.Runtime {
		return 0, nil
	}
	return slice, nil
}

// affinity is the CPU set of a thread, cut behind the last CPU in it.
func affinity(tid int) ([]byte, error) {
	buf := make([]byte, cpuSetBytes)
	n, _, e := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), uintptr(len(buf)), uintptr(unsafe.Pointer(&buf[0])))
	if e != 0 {
		return nil, fmt.Errorf("sched_getaffinity: %w", e)
	}
	return trim(buf[:n]), nil
}

func trim(set []byte) []byte {
	for len(set) > 0 && set[len(set)-1] == 0 {
		set = set[:len(set)-1]
	}
	return set
}

// subtract returns the CPUs of a that are not in b.
func subtract(a, b []byte) []byte {
	out := append([]byte(nil), a...)
	for i := range out {
		if i < len(b) {
			out[i] &^= b[i]
		}
	}
	return trim(out)
}

// readCPUs returns the CPUs of this machine that are online.
func readCPUs() ([]byte, error) {
	b, err := quickread.File(onlineCPUs)
	if err != nil {
		return nil, err
	}
	return parseCPUList(string(b))
}

// PossibleCPUs is how many CPUs this machine can have, online or not.
func PossibleCPUs() (int, error) {
	b, err := quickread.File("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	set, err := parseCPUList(string(b))
	return bitCount(set), err
}

// parseCPUList parses a list such as "0-3,8" into a CPU set.
func parseCPUList(s string) ([]byte, error) {
	set := make([]byte, cpuSetBytes)
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		z, err2 := strconv.ParseUint(hi, 10, 16)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("CPU list %q: %w", s, err)
		}
		if a > z || z >= cpuSetBytes*8 {
			return nil, fmt.Errorf("CPU list %q: no such range %q", s, part)
		}
		for ; a <= z; a++ {
			set[a/8] |= 1 << (a % 8)
		}
	}
	return trim(set), nil
}

// cpuList is the inverse of parseCPUList.
func cpuList(set []byte) string {
	var parts []string
	has := func(i int) bool { return i/8 < len(set) && set[i/8]&(1<<(i%8)) != 0 }
	for i := 0; i < len(set)*8; i++ {
		if !has(i) {
			continue
		}
		first := i
		for has(i + 1) {
			i++
		}
		if first == i {
			parts = append(parts, strconv.Itoa(i))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", first, i))
		}
	}
	return strings.Join(parts, ",")
}

// ioPrio is ioprio_get(2); kernels differ in what they show for "never set", which becomes 0.
func ioPrio(tid int) (uint32, error) {
	r, _, e := unix.RawSyscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(tid), 0)
	if e != 0 {
		return 0, fmt.Errorf("ioprio_get: %w", e)
	}
	if r>>ioprioClassShift == 0 {
		return 0, nil
	}
	return uint32(r), nil
}

// checkAffinity says which CPUs a thread needs that this machine does not have.
func checkAffinity(tid int32, s *image.Sched) error {
	if s.AllCPUs {
		return nil
	}
	online, err := readCPUs()
	if err != nil {
		return err
	}
	if len(subtract(s.Affinity, online)) == 0 {
		return nil
	}
	return fmt.Errorf("thread %d may run on the CPUs %s, this machine has %s: restore where they exist, or take the checkpoint after taskset -p",
		tid, cpuList(s.Affinity), cpuList(online))
}

// writeSched sets it all, from outside. The affinity comes first: under a realtime policy a
// thread would already take the wrong CPU for itself.
func writeSched(tid int, s *image.Sched) error {
	if err := checkAffinity(int32(tid), s); err != nil {
		return err
	}
	if err := writeAffinity(tid, s); err != nil {
		return err
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, tid, int(s.Nice)); err != nil {
		return fmt.Errorf("thread %d: set its nice value to %d: %w", tid, s.Nice, err)
	}
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: s.Policy, Flags: s.Flags, Priority: s.Priority, Runtime: s.Runtime}
	if !realtime(s.Policy) {
		a.Nice = s.Nice
	}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("thread %d: set its scheduling policy to %s, priority %d, nice %d: %w; it may need CAP_SYS_NICE", tid, policyName(s.Policy), s.Priority, s.Nice, err)
	}
	return writeIOPrio(tid, s.IOPrio)
}

func writeAffinity(tid int, s *image.Sched) error {
	set := s.Affinity
	if s.AllCPUs {
		set = make([]byte, cpuSetBytes) // the kernel cuts it down to the CPUs there are
		for i := range set {
			set[i] = 0xff
		}
	}
	if bitCount(set) == 0 {
		return fmt.Errorf("thread %d: its set of CPUs is empty", tid)
	}
	// The kernel reads whole words.
	set = append(append([]byte(nil), set...), make([]byte, (8-len(set)%8)%8)...)
	_, _, e := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, uintptr(tid), uintptr(len(set)), uintptr(unsafe.Pointer(&set[0])))
	if e != 0 {
		return fmt.Errorf("thread %d: let it run on the CPUs %s: %w", tid, cpuList(s.Affinity), e)
	}
	return nil
}

func bitCount(set []byte) (n int) {
	for _, b := range set {
		n += bits.OnesCount8(b)
	}
	return n
}

func writeIOPrio(tid int, want uint32) error {
	has, err := ioPrio(tid)
	if err != nil {
		return fmt.Errorf("thread %d: %w", tid, err)
	}
	if has == want {
		return nil
	}
	if _, _, e := unix.RawSyscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), uintptr(want)); e != 0 {
		return fmt.Errorf("thread %d: set its I/O priority to class %d, level %d: %w; the realtime class needs CAP_SYS_ADMIN or CAP_SYS_NICE", tid, want>>ioprioClassShift, want&0x1fff, e)
	}
	return nil
}

func policyName(p uint32) string {
	switch p {
	case schedNormal:
		return "SCHED_OTHER"
	case schedFIFO:
		return "SCHED_FIFO"
	case schedRR:
		return "SCHED_RR"
	case schedBatch:
		return "SCHED_BATCH"
	case schedIdle:
		return "SCHED_IDLE"
	case schedDeadline:
		return "SCHED_DEADLINE"
	}
	return fmt.Sprintf("policy %d", p)
}

// checkSched lists what of a thread's scheduling cannot be kept.
func checkSched(pid, tid int, add func(kind, what, remedy string)) error {
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return fmt.Errorf("thread %d: sched_getattr: %w", tid, err)
	}
	switch a.Policy {
	case schedNormal, schedFIFO, schedRR, schedBatch, schedIdle:
	default:
		add(policyName(a.Policy), "this scheduling policy is not kept", fmt.Sprintf("give it another one first, as with chrt -o -p 0 %d", tid))
	}
	if !defaultClamp(a) {
		add("uclamp", fmt.Sprintf("its utilization is clamped to %d … %d, which is not kept", a.Util_min, a.Util_max), fmt.Sprintf("reset it first, as with uclampset -r -p %d", tid))
	}
	var cookie uint64
	err = unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, uintptr(tid), unix.PR_SCHED_CORE_SCOPE_THREAD, uintptr(unsafe.Pointer(&cookie)))
	if err == nil && cookie != 0 { // EINVAL, ENODEV: no core scheduling here, so no cookie
		add("core scheduling cookie", "who else has the same cookie cannot be found out", "start the program without core scheduling (coresched)")
	}
	return nil
}

// defaultClamp says whether the utilization clamps are those of a thread that never set
// them: none of both where the kernel has no clamping, else 0 … 1024, or for realtime 1024 … 1024
// (kernel.sched_util_clamp_min_rt_default).
func defaultClamp(a *unix.SchedAttr) bool {
	switch {
	case a.Util_max == 0 || a.Util_min == 0 && a.Util_max == 1024:
		return true
	case realtime(a.Policy) && a.Util_max == 1024:
		b, err := quickread.File("/proc/sys/kernel/sched_util_clamp_min_rt_default")
		return err == nil && strings.TrimSpace(string(b)) == strconv.FormatUint(uint64(a.Util_min), 10)
	}
	return false
}
