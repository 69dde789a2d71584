package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"github.com/ckptfs/ckptfs/restore/lazy"
	"golang.org/x/sys/unix"
)

// probes lists what is tried out, the needed things first.
func probes() []probe {
	return []probe{
		{"Linux 6.8 or newer", true, "checkpoints cannot be taken: PAGEMAP_SCAN and other calls are missing", probeKernel},
		{"ptrace and remote system calls", true, "nothing can be frozen or captured", probeRemote},
		{"pidfd_getfd", true, "open files cannot be fetched", probePidfdGetfd},
		{"PAGEMAP_SCAN", true, "which pages there are cannot be found out", probePagemapScan},
		{"/proc/PID/map_files", true, "mapped files that were deleted or moved cannot be opened", probeMapFiles},
		{"clone3 with set_tid", true, "restored processes cannot have their old pids: needs CAP_CHECKPOINT_RESTORE", probeSetTID},
		{"/dev/fuse", false, "no mount; dump and restore work without", probeFuse},
		{"userfaultfd", false, "memory is restored by copying, which is slower", probeUserfaultfd},
		{"write tracking", false, "each checkpoint of a mount reads everything: needs UFFD_FEATURE_WP_ASYNC of userfaultfd (Linux 6.7)", probeTracking},
		{"userfaultfd with events", false, "restore --lazy and restore/lazy/ do not work: they need root (CAP_SYS_PTRACE) and a kernel with userfaultfd", probeLazy},
		{"guard regions", false, "a program's guard regions (MADV_GUARD_INSTALL) cannot be seen and are lost: Linux 6.13 and 6.14 have them and do not show them", probeGuards},
		{"/proc/timer_list", false, "interrupted sleeps are restored in full instead of what was left of them", probeTimerList},
		{"timers with chosen ids", false, "a POSIX timer gets its old id only by trying (Linux 6.15 has a call)", probeTimerIDs},
		{"exit codes through a pidfd", false, "ckptfs restore --wait exits with 0 whatever the tree does (Linux 6.15 tells)", probePidfdInfo},
		{"lent priority", false, "on a busy machine trees are still for longer: needs CAP_SYS_NICE", probeLend},
		{"TCP_REPAIR", false, "TCP connections within a tree are refused: needs CAP_NET_ADMIN", probeRepair},
		{"netfilter (nftables)", false, "--policy tcp=keep does not work: needs CAP_NET_ADMIN and CONFIG_NF_TABLES_INET", probeNetfilter},
		{"unix_diag", false, "programs with unix sockets are refused: the kernel lacks CONFIG_UNIX_DIAG", probeDiag},
		{"io_uring", false, "programs with an io_uring are refused: see sysctl kernel.io_uring_disabled", probeRing},
		{"BPF and BTF", false, "programs with an io_uring, an AIO context or messages in a POSIX queue are refused, as these cannot be read, and thousands of descriptors take longer: needs CONFIG_DEBUG_INFO_BTF, CAP_BPF and CAP_PERFMON", probeMemory},
		{"CAP_SYS_ADMIN", false, "processes with a seccomp filter, chroots and deleted files are refused", probeCap(unix.CAP_SYS_ADMIN)},
		{"CAP_SYS_RESOURCE", false, "processes whose hard limits are above ours, or whose oom_score_adj is lower, are refused at restore", probeCap(unix.CAP_SYS_RESOURCE)},
		{"CAP_SETUID and CAP_SETGID", false, "only processes of this user can be restored", probeCap(unix.CAP_SETUID, unix.CAP_SETGID)},
	}
}

func probeKernel(int) (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	release := unix.ByteSliceToString(u.Release[:])
	if !kernelAtLeast(release, 6, 8) {
		return "", fmt.Errorf("this is Linux %s", release)
	}
	return release, nil
}

// kernelAtLeast compares the beginning of a release string such as "6.18.44-generic".
func kernelAtLeast(release string, major, minor int) bool {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) < 2 {
		return false
	}
	a, errA := strconv.Atoi(f[0])
	b, errB := strconv.Atoi(f[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// probeRemote stops the child and lets it make a system call, as a checkpoint does. That
// also shows whether the registers of this CPU fit into the unused tail of the vdso.
func probeRemote(child int) (string, error) {
	tr := ptrace.NewTracer()
	defer tr.Close()
	size := 0
	err := tr.Do(func() error {
		th, err := tr.Seize(child, unix.PTRACE_O_TRACESYSGOOD)
		if err != nil {
			return err
		}
		_, err = th.WaitStop(time.Now().Add(5 * time.Second))
		if err == nil {
			size, err = remoteCall(child, th)
		}
		return errors.Join(err, th.Detach())
	})
	return fmt.Sprintf("works; %d bytes of extended registers", size), err
}

// probeLend looks whether what waits for us can have realtime priority for the time.
func probeLend(int) (string, error) {
	tr := ptrace.NewTracer()
	defer tr.Close()
	return "works", tr.Do(func() error {
		defer tr.Lend()()
		if !tr.Lends() {
			return errors.New("sched_setattr(2) does not let us")
		}
		return nil
	})
}

func remoteCall(child int, th *ptrace.Thread) (xstate int, err error) {
	r, err := ptrace.NewRemote(child)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	st, err := th.Capture(r.Mem())
	if err != nil {
		return 0, err
	}
	if err := r.Enter(th, st); err != nil {
		return 0, err
	}
	pid, err := r.Syscall(unix.SYS_GETPID)
	if err == nil && int(pid) != child {
		err = fmt.Errorf("getpid in process %d returned %d", child, pid)
	}
	return len(st.XState), errors.Join(err, r.Leave())
}

func probePidfdGetfd(child int) (string, error) {
	pidfd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 0, 0)
	if err != nil {
		return "", err
	}
	return "works", unix.Close(fd)
}

// pagemapScan is PAGEMAP_SCAN of linux/fs.h, pmScanArg struct pm_scan_arg.
const pagemapScan = 0xc0606610

type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, returned                         uint64
}

func probePagemapScan(child int) (string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", child))
	if err != nil {
		return "", err
	}
	defer f.Close()
	arg := pmScanArg{}
	arg.size = uint64(unsafe.Sizeof(arg))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return "", fmt.Errorf("PAGEMAP_SCAN: %w", errno)
	}
	return "works", nil
}

// probeGuards makes a guard page, if the kernel can, and looks whether it is shown.
func probeGuards(int) (string, error) {
	const guardInstall, pageIsGuard = 102, 1 << 8 // asm-generic/mman-common.h, linux/fs.h
	page := os.Getpagesize()
	b, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(b) // it cannot fail for a mapping of our own
	addr := uintptr(unsafe.Pointer(&b[0]))
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, uintptr(page), guardInstall); errno != 0 {
		return "this kernel has none", nil
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return "", err
	}
	defer f.Close()
	arg := pmScanArg{start: uint64(addr), end: uint64(addr) + uint64(page), mask: pageIsGuard, returned: pageIsGuard}
	arg.size = uint64(unsafe.Sizeof(arg))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return "", fmt.Errorf("PAGEMAP_SCAN: %w", errno)
	}
	return "works", nil
}

func probeMapFiles(child int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", child))
	if err != nil {
		return "", err
	}
	maps, err := procfs.ParseMaps(b)
	if err != nil {
		return "", err
	}
	for _, m := range maps {
		if m.Ino == 0 {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%x-%x", child, m.Start, m.End))
		if err != nil {
			return "", err
		}
		return "works", f.Close()
	}
	return "", errors.New("the child maps no file")
}

// cloneArgs is struct clone_args of linux/sched.h, up to set_tid_size.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize uint64
}

// probeSetTID asks for a process with our own pid. Who may do that is told that it is
// taken, so that no process is ever made.
func probeSetTID(int) (string, error) {
	tid := new(int32) // on the heap: the kernel gets its address as a number
	*tid = int32(os.Getpid())
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTID: uint64(uintptr(unsafe.Pointer(tid))), setTIDSize: 1}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	runtime.KeepAlive(tid)
	if errno != unix.EEXIST {
		return "", fmt.Errorf("clone3: %w", errno)
	}
	return "works", nil
}

func probeFuse(int) (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("/dev/fuse: %w; load it with modprobe fuse", err)
	}
	return "works", unix.Close(fd)
}

func probeUserfaultfd(int) (string, error) {
	fd, err := uffd.New(unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	return "works", fd.Close()
}

// probeTracking asks for what ckpt.Tracker needs.
func probeTracking(int) (string, error) {
	fd, err := uffd.New(unix.O_CLOEXEC | unix.O_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer fd.Close()
	if err := fd.Init(uffd.WPAsync); err != nil {
		return "", err
	}
	return "works", nil
}

func probeLazy(int) (string, error) {
	if err := lazy.Probe(); err != nil {
		return "", err
	}
	return "works", nil
}

func probeTimerList(int) (string, error) {
	f, err := os.Open("/proc/timer_list")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 64)); err != nil {
		return "", err
	}
	return "readable", nil
}

// prTimerCreateRestoreIDs is PR_TIMER_CREATE_RESTORE_IDS, its argument 2 reads the flag.
const prTimerCreateRestoreIDs = 77

func probeTimerIDs(int) (string, error) {
	if _, _, errno := unix.Syscall6(unix.SYS_PRCTL, prTimerCreateRestoreIDs, 2, 0, 0, 0, 0); errno != 0 {
		return "", fmt.Errorf("PR_TIMER_CREATE_RESTORE_IDS: %w", errno)
	}
	return "works", nil
}

func probePidfdInfo(child int) (string, error) {
	fd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return "", fmt.Errorf("PIDFD_GET_INFO: %w", errno)
	}
	if !kernelAtLeast(kernelRelease(), 6, 15) {
		return "", errors.New("the kernel knows a process, but not how it ended")
	}
	return "works", nil
}

func kernelRelease() string {
	s, _ := probeKernel(0) // "" for a kernel that is too old anyway
	return s
}

// probeCap makes a probe for effective capabilities.
func probeCap(caps ...uint) func(int) (string, error) {
	return func(int) (string, error) {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return "", err
		}
		st, err := procfs.ParseStatus(b)
		if err != nil {
			return "", err
		}
		for _, c := range caps {
			if st.CapEff&(1<<c) == 0 {
				return "", fmt.Errorf("this process does not have it (CapEff %#x)", st.CapEff)
			}
		}
		return "held", nil
	}
}
