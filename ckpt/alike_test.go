package ckpt

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

const alikeEnv = "CKPTFS_TEST_ALIKE"

// oddThreads are what threads of TestAlikeTarget do with themselves: those after which they may be like others, and those
// after which nobody else is like them.
var oddThreads = []struct {
	name string
	like bool
	set  func() unix.Errno
}{
	{"plain", true, func() unix.Errno { return 0 }},
	{"named", true, func() unix.Errno { return prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[16]byte{'o', 'd', 'd'}))) }},
	{"slack", true, func() unix.Errno { return prctl(unix.PR_SET_TIMERSLACK, 123456) }},
	{"parent's death", true, func() unix.Errno { return prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGUSR2)) }},
	{"clear_child_tid", true, func() unix.Errno {
		_, _, e := unix.RawSyscall(unix.SYS_SET_TID_ADDRESS, uintptr(unsafe.Pointer(new(uint64))), 0, 0)
		return e
	}},
	{"nice", true, func() unix.Errno {
		_, _, e := unix.RawSyscall(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, 5)
		return e
	}},
	{"memory errors", false, func() unix.Errno { return prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_EARLY) }},
	{"no_new_privs", false, func() unix.Errno { return prctl(unix.PR_SET_NO_NEW_PRIVS, 1) }},
	{"securebits", false, func() unix.Errno { return prctl(unix.PR_SET_SECUREBITS, 1<<4) }},
	{"user", false, func() unix.Errno {
		_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 1234, 1234, 1234)
		return e
	}},
	{"memory policy", false, func() unix.Errno {
		nodes := uint64(1)
		_, _, e := unix.RawSyscall(unix.SYS_SET_MEMPOLICY, 1, uintptr(unsafe.Pointer(&nodes)), 64) // MPOL_PREFERRED
		return e
	}},
}

func prctl(op, arg uintptr, more ...uintptr) unix.Errno {
	more = append(more, 0)
	_, _, e := unix.RawSyscall6(unix.SYS_PRCTL, op, arg, more[0], 0, 0, 0)
	return e
}

// TestAlikeTarget is the process that TestAlike looks at.
func TestAlikeTarget(t *testing.T) {
	if os.Getenv(alikeEnv) == "" {
		return // it plays a part in another test
	}
	done := make(chan error)
	for _, o := range oddThreads {
		go func() {
			runtime.LockOSThread()
			if e := o.set(); e != 0 {
				os.Stdout.WriteString(o.name + ": " + e.Error() + "\n")
				os.Exit(1)
			}
			done <- nil
			select {}
		}()
	}
	for range oddThreads {
		<-done
	}
	os.Stdout.WriteString("ready\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

// TestAlike compares threads that are read in the kernel's memory with the same when each was asked by itself.
func TestAlike(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestAlikeTarget$")
	cmd.Env = append(os.Environ(), alikeEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the target says %q, %v", line, err)
	}
	z, err := Freeze(context.Background(), cmd.Process.Pid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := z.Thaw(); err != nil {
			t.Error(err)
		}
	}()
	take := func(o Options) ([]image.Thread, *proc) {
		c, err := z.Take(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		stream(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		return c.m.Tasks[0].Threads, c.procs[0]
	}
	apart, _ := take(Options{apart: true})
	got, p := take(Options{})
	like := 0
	for i := range apart {
		if !reflect.DeepEqual(got[i], apart[i]) {
			t.Errorf("thread %d (%s) is\n%+v\nand asked by itself\n%+v", i, apart[i].Comm, got[i], apart[i])
		}
		if p.alike.Model(i) != i {
			like++
		}
	}
	odd := 0
	for _, o := range oddThreads {
		if !o.like {
			odd++
		}
	}
	// Which others are like each other depends on what they were just doing; one of each sort is like nobody.
	if most := len(apart) - odd - 1; like < most/2 || like > most {
		t.Errorf("%d of %d threads are like another, want about %d", like, len(apart), most)
	}
}
