package kmem

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestThreadStates compares what the kernel's memory tells of threads of ours, which hold still enough, with what they
// and /proc say.
func TestThreadStates(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	tids, done := make(chan int), make(chan struct{})
	defer close(done)
	go func() { // it ends with its thread
		runtime.LockOSThread()
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, 123456, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGUSR2), 0)
		name := [16]byte{'a', 'l', 'i', 'k', 'e'}
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SET_TID_ADDRESS, 0x1230, 0, 0)
		tids <- unix.Gettid()
		<-done
		_, _, _ = unix.RawSyscall(unix.SYS_SET_TID_ADDRESS, 0, 0, 0)
	}()
	go func() {
		runtime.LockOSThread()
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 1<<4, 0)
		tids <- unix.Gettid()
		<-done
	}()
	first, second := <-tids, <-tids
	all, err := m.ThreadStates(os.Getpid())
	for range 100 { // a thread of the Go runtime that ends meanwhile is an error
		if err == nil {
			break
		}
		all, err = m.ThreadStates(os.Getpid())
	}
	if err != nil {
		t.Fatal(err)
	}
	if all[first] == nil || all[second] == nil || all[os.Getpid()] == nil {
		t.Fatalf("threads %d and %d are not there: %v", first, second, all)
	}
	if all[first].Slack != 123456 {
		first, second = second, first
	}
	if s := all[first]; s.Slack != 123456 || s.PDeathSig != uint32(unix.SIGUSR2) || s.Comm != "alike" || s.ClearTID != 0x1230 {
		t.Errorf("it tells %+v", *s)
	}
	if a, b := all[first].Settings, all[second].Settings; a.Creds == b.Creds || a.TaskBits == b.TaskBits {
		t.Errorf("settings %+v and %+v: want other credentials and no_new_privs", a, b)
	}
	brief, err := m.ThreadBriefs(os.Getpid(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(brief) < len(all) || brief[first].Flags != all[first].Flags {
		t.Errorf("%d threads, %d in brief; flags %#x and %#x", len(all), len(brief), all[first].Flags, brief[first].Flags)
	}
	if _, err := m.ThreadBriefs(os.Getpid(), 1); err == nil {
		t.Error("more threads than are wanted are no error")
	}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	stacks := 0
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil || all[tid] == nil {
			continue // made since
		}
		b, err := os.ReadFile(filepath.Join("/proc/self/task", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		const kept = 0x00200040 | 0x00000010 // PF_KTHREAD, PF_FORKNOEXEC, PF_IO_WORKER
		if flags, err := strconv.ParseUint(fields[6], 10, 32); err != nil || uint32(flags)&kept != all[tid].Flags&kept {
			t.Errorf("thread %d: flags %#x, /proc says %s", tid, all[tid].Flags, fields[6])
		}
		if all[tid].AltStack.Size > 0 {
			stacks++
		}
	}
	if stacks == 0 {
		t.Error("no thread has an alternate stack; Go gives one to each, soon after it is made")
	}
}

// TestChildren looks for the children of the thread that has made one.
func TestChildren(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	has := func() bool {
		brief, err := m.ThreadBriefs(os.Getpid(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		return brief[unix.Gettid()].Children
	}
	before := has()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !has() {
		t.Error("a thread with a child has none")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("sleep was killed and ended well")
	}
	if has() != before {
		t.Errorf("children: %v when it is gone, %v before it was there", has(), before)
	}
}
