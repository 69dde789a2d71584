package kind

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestApart runs calls, all of them.
func TestApart(t *testing.T) {
	calls := []call{{nr: unix.SYS_GETPPID}, {nr: unix.SYS_CLOSE, args: [6]uintptr{^uintptr(0)}}, {nr: unix.SYS_GETPID}}
	s := &Scene{}
	must(t, s.runApart(calls))
	if calls[0].ret != os.Getpid() || calls[1].err() != unix.EBADF || calls[2].ret == os.Getpid() || calls[2].ret <= 0 {
		t.Errorf("%+v", calls)
	}
	must(t, s.runApart(nil))
}

// TestApartHolds kills a tracer and its process group while calls are run apart: what it traces stands still
// until they have ended, and goes on then.
func TestApartHolds(t *testing.T) {
	for _, how := range []string{"calls", "queues"} {
		t.Run(how, func(t *testing.T) {
			target := exec.Command("sleep", "1000")
			must(t, target.Start())
			defer func() {
				must(t, target.Process.Kill())
				_ = target.Wait() // it was killed
			}()
			tracer := exec.Command("/proc/self/exe", "-test.run=TestApartHelper")
			tracer.Env = append(os.Environ(), fmt.Sprintf("CKPTFS_APART=%s %d", how, target.Process.Pid))
			tracer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := tracer.StdoutPipe()
			must(t, err)
			must(t, tracer.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			must(t, err)
			var apart int
			if _, err := fmt.Sscanf(line, "apart %d", &apart); err != nil {
				t.Fatal(line)
			}
			must(t, unix.Kill(-tracer.Process.Pid, unix.SIGKILL))
			for looks := 0; ; looks++ {
				state := stateOf(target.Process.Pid)
				if s := stateOf(apart); s == "" || s == "Z" || s == "X" {
					if looks < 20 {
						t.Fatalf("pid %d ended after %d looks: nothing is proven", apart, looks)
					}
					break
				}
				if state != "t" {
					t.Fatalf("pid %d is in state %s while pid %d still works", target.Process.Pid, state, apart)
				}
				time.Sleep(time.Millisecond)
			}
			_ = tracer.Wait() // it was killed
			for end := time.Now().Add(10 * time.Second); stateOf(target.Process.Pid) != "S"; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("pid %d does not go on: %s", target.Process.Pid, stateOf(target.Process.Pid))
				}
			}
		})
	}
}

// TestApartLate kills a tracer before its process of runApart could hold it: nothing is changed any more.
func TestApartLate(t *testing.T) {
	for _, killed := range []bool{false, true} {
		made := filepath.Join(t.TempDir(), "made")
		tracer := exec.Command("/proc/self/exe", "-test.run=TestApartHelper")
		tracer.Env = append(os.Environ(), fmt.Sprintf("CKPTFS_APART=%s %d", made, os.Getpid()))
		out, err := tracer.StdoutPipe()
		must(t, err)
		must(t, tracer.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		must(t, err)
		var apart int
		if _, err := fmt.Sscanf(line, "apart %d", &apart); err != nil {
			t.Fatal(line)
		}
		if killed {
			must(t, tracer.Process.Kill())
		}
		_ = tracer.Wait() // killed or not
		for s := stateOf(apart); s != "" && s != "Z" && s != "X"; s = stateOf(apart) {
			time.Sleep(time.Millisecond)
		}
		if _, err := os.Stat(made); killed != os.IsNotExist(err) {
			t.Errorf("killed %v: %v", killed, err)
		}
	}
}

// stateOf is the state of a process in /proc/PID/stat, or "" if there is none.
func stateOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
}

// TestApartHelper traces a process on one thread, and makes slow calls apart on another, for TestApartHolds.
func TestApartHelper(t *testing.T) {
	var how string
	var pid int
	if n, _ := fmt.Sscanf(os.Getenv("CKPTFS_APART"), "%s %d", &how, &pid); n != 2 {
		return
	}
	pause := &unix.Timespec{Nsec: 300e6}
	slow := []call{{nr: unix.SYS_NANOSLEEP, args: [6]uintptr{uintptr(unsafe.Pointer(pause))}}}
	defer runtime.KeepAlive(pause)
	if filepath.IsAbs(how) { // TestApartLate
		path := []byte(how + "\x00")
		r := (&Scene{}).newApart([]call{{nr: unix.SYS_MKDIR, args: [6]uintptr{uintptr(unsafe.Pointer(&path[0])), 0o700}}}, nil)
		r.hold = append(slow, r.hold...)
		go sayApart(pid)
		must(t, r.run())
		runtime.KeepAlive(path)
		return
	}
	traces := make(chan int)
	go func() {
		runtime.LockOSThread()
		must(t, unix.PtraceSeize(pid))
		must(t, unix.PtraceInterrupt(pid))
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		must(t, err)
		traces <- unix.Gettid()
		select {}
	}()
	s := &Scene{Tracers: []int{<-traces}}
	go sayApart(pid)
	if how == "queues" {
		r := s.newApart(nil, &queues{})
		r.hold = append(r.hold, slow...)
		must(t, r.run())
		return
	}
	must(t, s.runApart(slow))
}

// sayApart prints the pid of a process of runApart.
func sayApart(pid int) {
	for stateOf(pid) != "" { // until this process is killed
		if b, _ := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid())).Output(); len(b) > 0 {
			fmt.Printf("apart %s", b)
			return
		}
	}
}
