package kind

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

// withSelf says that the tree of the stage is this process.
func (s *stage) withSelf() {
	s.scene.Member = func(id int) bool {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(id))
		return err == nil
	}
	t := image.Task{PID: int32(os.Getpid())}
	entries, err := os.ReadDir("/proc/self/task")
	must(s.t, err)
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		must(s.t, err)
		t.Threads = append(t.Threads, image.Thread{TID: int32(tid)})
	}
	s.env.Manifest.Tasks = []image.Task{t}
}

func newPidFD(t *testing.T, pid, flags int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, flags)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// child starts a process that lives until end is called, which also reaps it.
func child(t *testing.T) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	must(t, cmd.Start())
	end = func() {
		cmd.Process.Kill() // may have been called before
		cmd.Wait()
	}
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestPidFD(t *testing.T) {
	for _, flags := range []int{0, unix.O_NONBLOCK, pidfdThread, pidfdThread | unix.O_NONBLOCK} {
		s := newStage(t)
		s.withSelf()
		s.trip(newPidFD(t, os.Getpid(), flags))
	}
	s := newStage(t)
	s.withSelf()
	other := s.env.Manifest.Tasks[0].Threads[len(s.env.Manifest.Tasks[0].Threads)-1].TID
	s.trip(newPidFD(t, int(other), pidfdThread))
}

// TestPidFDDead restores pidfds of a process that was reaped.
func TestPidFDDead(t *testing.T) {
	pid, end := child(t)
	a, b := newPidFD(t, pid, 0), newPidFD(t, pid, unix.O_NONBLOCK)
	end()
	s := newStage(t)
	s.withSelf()
	s.add(a, b)
	must(t, image.Refusals(s.check()))
	files := s.dump()
	all, err := pidFD{}.Dead(&files[0])
	must(t, err)
	if twins, err := (pidFD{}).Dead(&files[1]); err != nil || len(all) != 1 || !slices.Equal(twins, all) {
		t.Fatalf("two of one process are %v and %v (%v)", all, twins, err)
	}
	d := all[0]
	if d.Status != uint32(unix.SIGKILL) {
		t.Errorf("it was killed, and its status is %#x", d.Status)
	}
	stand, end := child(t)
	s.env.Dead = map[string]int{d.Key: stand}
	got, err := s.open()
	must(t, err)
	end()
	for i, fd := range []int{a, b} {
		if diff := differences(t, fd, got[i]); len(diff) != 0 {
			t.Error(diff)
		}
	}
}

func TestPidFDRefusals(t *testing.T) {
	pid, _ := child(t)
	s := newStage(t)
	s.withSelf()
	s.add(newPidFD(t, pid, 0))
	refused(t, s.check(), "pid "+strconv.Itoa(pid)+" (", "outside the tree")

	s = newStage(t)
	s.withSelf()
	f := s.add(newPidFD(t, os.Getpid(), 0))[0]
	f.Info.Other = []string{"Pid:\t0", "NSpid:\t0"}
	refused(t, s.check(), "another pid namespace")
	f.Info.Other = nil
	refused(t, s.check(), "tells no pid")
}

// TestPidFDOutside restores pidfds of processes outside the tree, of which one has ended meanwhile.
func TestPidFDOutside(t *testing.T) {
	stays, _ := child(t)
	goes, end := child(t)
	s := newStage(t)
	s.withSelf()
	s.scene.Policy = policy.Set{"pidfd": "reopen"}
	s.add(newPidFD(t, stays, unix.O_NONBLOCK), newPidFD(t, goes, 0))
	for _, f := range s.check() {
		if f.Severity != image.Lose || !strings.Contains(f.What, "which is outside the tree: if that has ended") {
			t.Error(f)
		}
	}
	files := s.dump()
	end()
	s.env.Dead = map[string]int{}
	for i, want := range []int{0, 1} {
		all, err := pidFD{}.Dead(&files[i])
		must(t, err)
		if len(all) != want || want == 1 && all[0].Status != uint32(unix.SIGKILL) {
			t.Fatalf("file %d: %+v", i, all)
		}
		for _, d := range all {
			s.env.Dead[d.Key], end = child(t)
		}
	}
	got, err := s.open()
	must(t, err)
	end()
	if out := strings.Join(s.warned, "\n"); !strings.Contains(out, strconv.Itoa(goes)+", which was outside the tree, runs no more") {
		t.Errorf("it says %q", out)
	}
	for i, want := range []string{strconv.Itoa(stays), "-1"} {
		b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(got[i]))
		must(t, err)
		if !strings.Contains(string(b), "Pid:\t"+want+"\n") {
			t.Errorf("file %d is of another process than %s: %s", i, want, b)
		}
	}
	other := image.File{Kind: "pidfd"}
	boot, start, err := lifeOf(stays)
	must(t, err)
	must(t, encodeRec(&other, &pidFDRec{PID: int32(stays), Start: start + 1, Boot: boot}))
	if fd, err := (pidFD{}).Open(&other, s.env); err == nil {
		unix.Close(fd)
		t.Error("a process that has the number by now is taken for that of the image")
	}
}

// TestPidFDHostile wants no process to be made or opened that the image has no right to.
func TestPidFDHostile(t *testing.T) {
	s := newStage(t)
	s.withSelf()
	for _, pid := range []int32{1, -5} {
		rec := image.File{Kind: "pidfd"}
		must(t, encodeRec(&rec, &pidFDRec{PID: pid}))
		if fd, err := (pidFD{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("a pidfd of process %d was opened", pid)
		}
		if _, err := (pidFD{}).CheckOpen(&rec, s.env); err == nil {
			t.Errorf("nobody misses process %d", pid)
		}
	}
	for status, ok := range map[uint32]bool{0: true, 0x700: true, 9: true, 0x8b: true, 64: true,
		uint32(unix.SIGCHLD): false, uint32(unix.SIGSTOP): false, 0x7f: false, 0x137f: false, 0xffff: false, 0x10000: false, 0x109: false, 65: false} {
		rec := image.File{Kind: "pidfd"}
		must(t, encodeRec(&rec, &pidFDRec{Ino: 1, Status: status}))
		if _, err := (pidFD{}).Dead(&rec); (err == nil) != ok {
			t.Errorf("wait status %#x: %v", status, err)
		}
	}
	if n := unsafe.Sizeof(pidfdInfo{}); n != 64 {
		t.Errorf("struct pidfd_info has %d bytes", n)
	}
}
