package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// objectsOf finds the set and the queue that have the key of a test program.
func objectsOf(t *testing.T, pid int) (sem sysv.Sem, msg sysv.Msg) {
	t.Helper()
	key := int32(0x5d000000 | pid<<4)
	sems, err := sysv.ReadSem()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sems {
		if s.Key == key {
			sem = s
		}
	}
	msgs, err := sysv.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range msgs {
		if q.Key == key {
			msg = q
		}
	}
	if sem.Key != key || msg.Key != key {
		t.Fatalf("pid %d has no set or queue with the key %#x", pid, key)
	}
	return sem, msg
}

func remove(t *testing.T, name string, id int32) {
	t.Helper()
	if err := sysv.Remove(name, id); err != nil {
		t.Fatal(err)
	}
}

// TestSysVIPCGone brings back semaphores and queues that have been removed since.
func TestSysVIPCGone(t *testing.T) {
	r := harness.Start(t, "sysvipc")
	image := r.Dump()
	r.Kill()
	sem, msg := objectsOf(t, r.PID)
	remove(t, "sem", sem.ID)
	remove(t, "msg", msg.ID)
	r.Restore(image)
	r.Pass(true)
}

// TestSysVIPCInTheWay has others use what a restore needs.
func TestSysVIPCInTheWay(t *testing.T) {
	r := harness.Start(t, "sysvipc")
	image := r.Dump("--kill")
	r.WaitGone()
	sem, msg := objectsOf(t, r.PID)
	restore := []string{harness.Binary(), "restore", image}
	fails(t, append(restore, "--policy", "ipc=refuse"), "still there", "ipcrm -s")

	// Somebody uses it.
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(sem.ID), 4, sysv.SemSetVal, 1, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	fails(t, restore, "SysV semaphore set "+itoa(int(sem.ID)), "pid "+itoa(os.Getpid())+" uses it")

	// Somebody else has its key, or its id.
	remove(t, "sem", sem.ID)
	get := func(key int32) func() (int32, error) {
		return func() (int32, error) {
			id, _, errno := unix.Syscall(unix.SYS_SEMGET, uintptr(uint32(key)), 1, sysv.IPCCreat|0o600)
			if errno != 0 {
				return -1, errno
			}
			return int32(id), nil
		}
	}
	other, err := get(sem.Key)()
	if err != nil {
		t.Fatal(err)
	}
	fails(t, restore, "number "+itoa(int(other))+" has its key now", "ipcrm -s "+itoa(int(other)))
	remove(t, "sem", other)
	if err := sysv.Make("sem", "set", sem.ID, get(0), func(id int32) error { return sysv.Remove("sem", id) }); err != nil {
		t.Fatal(err)
	}
	fails(t, restore, "there is another one with that id")
	remove(t, "sem", sem.ID)

	// A slot that is taken is only found out when others have been made: they are removed again.
	taken := (msg.ID + 1<<15) & (1<<31 - 1)
	remove(t, "msg", msg.ID)
	err = sysv.Make("msg", "queue", taken, func() (int32, error) {
		id, _, errno := unix.Syscall(unix.SYS_MSGGET, 0, sysv.IPCCreat|0o600, 0)
		if errno != 0 {
			return -1, errno
		}
		return int32(id), nil
	}, func(id int32) error { return sysv.Remove("msg", id) })
	if err != nil {
		t.Fatal(err)
	}
	fails(t, restore, "blocked by another with the same slot", "SysV message queue "+itoa(int(msg.ID)))
	sems, err := sysv.ReadSem()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sems {
		if s.ID == sem.ID {
			t.Errorf("a failed restore left the set %d", s.ID)
		}
	}
	remove(t, "msg", taken)
	r.Restore(image)
	r.Pass(true)
}

// TestSysVIPCShared has somebody outside the tree use its semaphores.
func TestSysVIPCShared(t *testing.T) {
	r := harness.Start(t, "sysvipc")
	sem, _ := objectsOf(t, r.PID)
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(sem.ID), 4, sysv.SemSetVal, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	got := fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "(SysV semaphore set)", "pid "+itoa(os.Getpid())+", which is outside the tree, uses number "+itoa(int(sem.ID)))
	if got.Code != 1 {
		t.Errorf("%v", got)
	}
	sems, msgs := usedBy(t, r.Tree())
	r.Kill()
	for _, id := range sems {
		remove(t, "sem", id)
	}
	for _, id := range msgs {
		remove(t, "msg", id)
	}
}

// semSetOf finds the set that has the key of a test program.
func semSetOf(t *testing.T, pid int) sysv.Sem {
	t.Helper()
	all, err := sysv.ReadSem()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s sysv.Sem) bool { return s.Key == int32(0x5d000000|pid<<4) })
	if i < 0 {
		t.Fatalf("pid %d has no set", pid)
	}
	return all[i]
}

// TestSemUndoGone brings back adjustments with a set that has been removed since.
func TestSemUndoGone(t *testing.T) {
	r := harness.Start(t, "semundo")
	image := r.Dump("--kill")
	r.WaitGone()
	remove(t, "sem", semSetOf(t, r.PID).ID)
	r.Restore(image)
	r.Pass(true)
}

// TestSemUndoShared has somebody outside use a set in which the tree has adjustments.
func TestSemUndoShared(t *testing.T) {
	r := harness.Start(t, "semundo")
	set := semSetOf(t, r.PID)
	values, err := sysv.Values(set.ID, set.N)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		ops := sysv.Touch(uint16(i), v)
		b := sysv.Encode(ops)
		if _, _, errno := unix.Syscall(unix.SYS_SEMOP, uintptr(set.ID), uintptr(unsafe.Pointer(&b[0])), uintptr(len(ops))); errno != 0 {
			t.Fatal(errno)
		}
	}
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "(SysV semaphore undo)",
		"it has an adjustment (SEM_UNDO) in the set "+itoa(int(set.ID))+", which pid "+itoa(os.Getpid())+" outside the tree uses too")
	r.Kill()
	remove(t, "sem", set.ID)
}

// TestSysVIPCWaits keeps a set because somebody of the tree waits in it, unless somebody else uses it.
func TestSysVIPCWaits(t *testing.T) {
	id, _, errno := unix.Syscall(unix.SYS_SEMGET, 0, 1, sysv.IPCCreat|0o600)
	if errno != 0 {
		t.Fatal(errno)
	}
	r := harness.Start(t, "sysvipc", "waits", itoa(int(id)))
	image := r.Dump("--kill")
	r.WaitGone()
	remove(t, "sem", int32(id))
	r.Restore(image)
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, id, 0, sysv.SemSetVal, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "(SysV semaphore set)", "pid "+itoa(os.Getpid())+", which is outside the tree, uses number "+itoa(int(id)))
	r.Pass(true)
}

// TestSysVIPCLost says of a set that nobody has used that it is lost.
func TestSysVIPCLost(t *testing.T) {
	r := harness.Start(t, "sysvipc", "unused")
	explain := func() string { return harness.Must(t, harness.Binary(), "explain", itoa(r.PID)).Stdout }
	harness.Eventually(t, "lost", func() bool { return strings.Contains(explain(), "lost") })
	harness.Say(t, "explain", explain(), "(SysV semaphore set)", "was made by uid 54321", "nobody who lives has used it")
	r.Pass(false)
}

// usedBy lists the sets and queues that processes of the tree used last.
func usedBy(t *testing.T, pids []int) (sems, msgs []int32) {
	t.Helper()
	all, err := sysv.ReadSem()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		last, err := sysv.LastPIDs(s.ID, s.N)
		if err == nil && slices.ContainsFunc(last, func(p int32) bool { return slices.Contains(pids, int(p)) }) {
			sems = append(sems, s.ID)
		}
	}
	queues, err := sysv.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		if slices.Contains(pids, q.LSPID) || slices.Contains(pids, q.LRPID) {
			msgs = append(msgs, q.ID)
		}
	}
	return sems, msgs
}
