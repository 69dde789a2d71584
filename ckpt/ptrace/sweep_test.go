package ptrace

import (
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
		return f.r.Sweep(cmd.Process.Pid)
	})
	if m, _ := leftovers(t, cmd.Process.Pid); m != 3 {
		t.Errorf("%d mappings are left, want all 3", m)
	}
}
