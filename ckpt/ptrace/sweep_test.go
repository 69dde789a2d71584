package ptrace

import (
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// leftovers counts what a killed tracer has left in a process.
func leftovers(t *testing.T, pid int) (mappings, zombies int) {
	t.Helper()
	maps, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range maps {
		if isSharedAnon(v) {
			mappings++
		}
	}
	for _, c := range children(pid, pid) {
		if isHelperZombie(c) {
			zombies++
		}
	}
	return mappings, zombies
}

// A tracer is killed at every step; what that left is gone after the next clean freeze.
// Both sorts of leftovers must have occurred, or the test shows nothing.
func TestSweep(t *testing.T) {
	cmd, _ := startReady(t, nil, "stub") // sleeps in pause, and waits for nobody
	pid := cmd.Process.Pid
	n, _ := killedAtStep(t, pid, 0)
	checkUntouched(t, pid)
	seenMap, seenZombie := 0, 0
	for k := 1; k <= n; k++ {
		killedAtStep(t, pid, k)
		awaitZombies(t, pid)
		m, z := leftovers(t, pid)
		if m > 0 {
			seenMap++
		}
		if z > 0 {
			seenZombie++
		}
		if m+z == 0 {
			continue
		}
		killedAtStep(t, pid, 0)
		checkUntouched(t, pid)
		checkAlive(t, pid)
	}
	if seenMap == 0 || seenZombie == 0 {
		t.Errorf("%d kills left a mapping, %d a zombie: the test shows nothing", seenMap, seenZombie)
	}
	t.Logf("%d of %d kills left a mapping, %d a zombie", seenMap, n, seenZombie)
}

// As long as a helper of a killed tracer has not left the code in the vdso, that is not touched.
func TestAwaitHelpers(t *testing.T) {
	cmd, _ := startReady(t, nil, "stub")
	pid := cmd.Process.Pid
	tr := NewTracer()
	helper := 0
	err := tr.Do(func() error {
		f, err := freeze(tr, pid)
		if err != nil {
			return err
		}
		if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
			return err
		}
		if err := f.threads[0].SetOptions(unix.PTRACE_O_TRACECLONE); err != nil {
			return err
		}
		h, _, err := f.r.Clone(unix.SYS_CLONE, intermediateFlags)
		if err != nil {
			return err
		}
		helper = h.TID
		return unix.Kill(helper, unix.SIGSTOP)
	})
	tr.Close()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := NewRemote(pid); err == nil || !strings.Contains(err.Error(), strconv.Itoa(helper)) {
		t.Errorf("with a helper that is stopped: %v, %v", r, err)
	}
	unix.Kill(helper, unix.SIGCONT)
	inFrozen(t, pid, func(f *frozen) error {
		awaitZombies(t, pid)
		return f.r.Sweep(pid, true)
	})
	checkAlive(t, pid)
	checkUntouched(t, pid)
}

// A mapping of the program's own, also of the size of ours, is not touched.
func TestSweepLeavesOthers(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		for _, size := range []uint64{scratchSize, scratchSize - pageSize, pageSize} {
			_, err := f.r.Syscall(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS, ^uint64(0), 0)
			if err != nil {
				return err
			}
		}
		return f.r.Sweep(cmd.Process.Pid, true)
	})
	if m, _ := leftovers(t, cmd.Process.Pid); m != 3 {
		t.Errorf("%d mappings are left, want all 3", m)
	}
}

// A thread that was let go inside our code, and stopped by job control before it could
// leave it, is let out by the next Capture.
func TestSettle(t *testing.T) {
	s := startTarget(t, compile(t, "regs"), "locks")
	pid := s.cmd.Process.Pid
	for i := range 10 {
		tr := NewTracer()
		var rip uint64
		err := tr.Do(func() error {
			f, err := freeze(tr, pid)
			if err != nil {
				return err
			}
			if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
				return err
			}
			if err := batchOf(f, 2); err != nil {
				return err
			}
			regs := f.r.foreign(f.states[0])
			regs.Rip, regs.Rbp = f.r.frame.code(stubReturn), f.r.frame.code(stubReturn)
			if i%2 == 1 {
				regs.Rip = f.r.scratch.code + batchEnd
			}
			rip = regs.Rip
			if err := f.threads[0].SetRegs(&regs); err != nil {
				return err
			}
			return unix.Kill(pid, unix.SIGSTOP)
		})
		tr.Close()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is stopped", func() bool {
			st, _ := readStat(pid)
			return st.state == 'T'
		})
		inFrozen(t, pid, func(f *frozen) error {
			if !f.states[0].GroupStop {
				t.Error("the group stop is gone")
			}
			if f.states[0].Regs.Rip == rip {
				t.Error("the thread was captured in our code")
			}
			return f.r.Sweep(pid, true)
		})
		unix.Kill(pid, unix.SIGCONT)
		s.check(t, "settle")
		// The timer's signal may have been pending: its handler then stood above our code.
		inFrozen(t, pid, func(f *frozen) error { return f.r.Sweep(pid, true) })
		checkUntouched(t, pid)
	}
}
