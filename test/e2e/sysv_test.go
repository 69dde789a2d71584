package e2e

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// segmentsOf lists the shared memory that a test program has made, by key.
func segmentsOf(t *testing.T, pid int) []sysv.Shm {
	t.Helper()
	all, err := sysv.ReadShm()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(s sysv.Shm) bool { return s.CPID != pid })
}

// byKey finds the segment with the key that the program gave its n-th.
func byKey(t *testing.T, pid, n int) sysv.Shm {
	t.Helper()
	for _, s := range segmentsOf(t, pid) {
		if s.Key == int32(0x5c000000|pid<<4)+int32(n) {
			return s
		}
	}
	t.Fatalf("pid %d has no segment %d", pid, n)
	return sysv.Shm{}
}

func removeAll(t *testing.T, pid int) {
	t.Helper()
	for _, s := range segmentsOf(t, pid) {
		if err := sysv.Remove("shm", s.ID); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func attach(t *testing.T, id int32) (detach func()) {
	t.Helper()
	a, err := sysv.Attach(id, true)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := a.Close(); err != nil {
			t.Errorf("%v", err)
		}
	}
}

// TestSysVGone brings back shared memory that has been removed since, as after a reboot.
func TestSysVGone(t *testing.T) {
	r := harness.Start(t, "sysvshm")
	image := r.Dump()
	r.Kill()
	removeAll(t, r.PID)
	r.Restore(image)
	image = r.Dump("--kill")
	r.WaitGone()
	removeAll(t, r.PID)
	r.Restore(image)
	r.Pass(true)
}

// TestSysVHugeGone does so with huge pages.
func TestSysVHugeGone(t *testing.T) {
	r := harness.Start(t, "sysvshm", "huge")
	image := r.Dump("--kill")
	r.WaitGone()
	removeAll(t, r.PID)
	r.Restore(image)
	r.Pass(true)
}

// TestSysVZero brings back the segment with the id 0, which is its inode number too. That may be taken, by a segment or its slot.
func TestSysVZero(t *testing.T) {
	all, err := sysv.ReadShm()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(all, func(s sysv.Shm) bool { return s.ID&(1<<15-1) == 0 }) {
		t.Log("the slot 0 is taken")
		return
	}
	if err := os.WriteFile("/proc/sys/kernel/shm_next_id", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	r := harness.Start(t, "sysvshm")
	image := r.Dump()
	r.Kill()
	removeAll(t, r.PID)
	r.Restore(image)
	r.Pass(true)
}

// TestSysVKilled kills `ckptfs dump` at random moments: attachments, semaphores and queues are as they were.
func TestSysVKilled(t *testing.T) {
	for _, prog := range []string{"sysvshm", "sysvipc", "semundo", "numa", "mqueue"} {
		t.Run(prog, func(t *testing.T) {
			r := harness.Start(t, prog)
			full := timeOf(func() { r.DumpTo("/dev/null") })
			rng := rand.New(rand.NewPCG(7, 7))
			for range soak(t, 12) {
				c := exec.Command(harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null")
				harness.RunKilled(t, c, time.Duration(rng.Int64N(int64(full))))
				r.Alive()
			}
			r.Dump()
			r.Pass(false)
		})
	}
}

// TestSysVRestoreKilled kills `ckptfs restore` at random moments. What that leaves the next one takes up.
func TestSysVRestoreKilled(t *testing.T) {
	for _, prog := range []string{"sysvshm", "sysvipc", "semundo"} {
		t.Run(prog, func(t *testing.T) {
			r := harness.Start(t, prog)
			image := r.Dump("--kill")
			r.WaitGone()
			removeAll(t, r.PID)
			full := timeOf(func() { harness.Run(t, harness.Binary(), "show", image) })
			rng := rand.New(rand.NewPCG(8, 8))
			for range soak(t, 25) {
				c := exec.Command(harness.Binary(), "restore", image)
				harness.RunKilled(t, c, full/2+time.Duration(rng.Int64N(int64(full+60*time.Millisecond))))
				gone := func() bool { return !harness.Exists(r.PID) }
				harness.Eventually(t, "no process of a killed restore", func() bool { return gone() || runs(r.PID) })
				r.Kill() // if it was faster
			}
			r.Restore(image)
			r.Pass(true)
		})
	}
}

// runs reports whether a process lives and nobody traces it: a restore has let it go.
func runs(pid int) bool {
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	return err == nil && strings.Contains(string(b), "\nTracerPid:\t0\n") && !strings.Contains(string(b), "\nState:\tZ")
}

// TestSysVChanged brings back shared memory that is still there and has another content by now.
func TestSysVChanged(t *testing.T) {
	r := harness.Start(t, "sysvshm")
	image := r.Dump("--kill")
	r.WaitGone()
	for n := range 5 {
		if n == 1 {
			continue // it was marked for removal
		}
		s := byKey(t, r.PID, n)
		a, err := sysv.Attach(s.ID, true)
		if err != nil {
			t.Fatal(err)
		}
		b, err := unix.Mmap(a.FD, 0, int(s.Size+4095)&^4095, unix.PROT_WRITE|unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = 'x'
		}
		if err := unix.Munmap(b); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fails(t, []string{harness.Binary(), "restore", image, "--policy", "ipc=refuse"}, "still there", "ipcrm -m")
	got := harness.Must(t, harness.Binary(), "restore", image)
	harness.Say(t, "restore", got.Stderr, "is still there; its content is that of the image again")
	r.Restored()
	r.Pass(true)
}

// TestSysVShared has somebody outside the tree attach its memory.
func TestSysVShared(t *testing.T) {
	r := harness.Start(t, "sysvshm")
	seg := byKey(t, r.PID, 0)
	detach := attach(t, seg.ID)
	for _, argv := range [][]string{{"explain", itoa(r.PID)}, {"dump", itoa(r.PID), "-o", "/dev/null"}} {
		got := harness.Run(t, append([]string{harness.Binary()}, argv...)...)
		if got.Code != 1 {
			t.Errorf("%v", got)
		}
		harness.Say(t, argv[0], got.Stdout+got.Stderr, "pid "+itoa(r.PID), "pid "+itoa(os.Getpid())+", which is outside the tree", "segment "+itoa(int(seg.ID)))
	}
	detach()

	// This one nobody in the tree has attached.
	detach = attach(t, byKey(t, r.PID, 4).ID)
	got := harness.Must(t, harness.Binary(), "explain", itoa(r.PID))
	harness.Say(t, "explain", got.Stdout, "lost: pid "+itoa(r.PID), "it made the segment", "only processes outside the tree have attached now")
	detach()
	r.Pass(false)
}

// TestSysVInTheWay has others use what a restore needs.
func TestSysVInTheWay(t *testing.T) {
	r := harness.Start(t, "sysvshm")
	seg := byKey(t, r.PID, 0)
	image := r.Dump()
	r.Alive()
	r.Kill()
	restore := []string{harness.Binary(), "restore", image}

	detach := attach(t, seg.ID)
	fails(t, restore, "attached by pid "+itoa(os.Getpid()), "SysV shared memory "+itoa(int(seg.ID)))
	detach()

	// Somebody else has its key.
	if err := sysv.Remove("shm", seg.ID); err != nil {
		t.Fatal(err)
	}
	other, err := unix.SysvShmGet(int(seg.Key), 100, sysv.IPCCreat|0o600)
	if err != nil {
		t.Fatal(err)
	}
	if int32(other) == seg.ID {
		t.Fatalf("the id %d was given out again", other)
	}
	fails(t, restore, "the segment "+itoa(other)+" has its key now", "made by pid "+itoa(os.Getpid()), "ipcrm -m "+itoa(other))
	if err := sysv.Remove("shm", int32(other)); err != nil {
		t.Fatal(err)
	}

	// Somebody else has its id, or its slot.
	for _, id := range []int32{seg.ID, (seg.ID + 1<<15) & (1<<31 - 1)} {
		err := sysv.Make("shm", "segment", id, func() (int32, error) {
			got, err := unix.SysvShmGet(0, 100, sysv.IPCCreat|0o600)
			return int32(got), err
		}, func(id int32) error { return sysv.Remove("shm", id) })
		if err != nil {
			t.Fatal(err)
		}
		words := "there is another segment with that id"
		if id != seg.ID {
			words = "blocked by another with the same slot"
		}
		before := len(segmentsOf(t, r.PID))
		fails(t, restore, words)
		if n := len(segmentsOf(t, r.PID)); n != before {
			t.Errorf("a failed restore left %d segments, there were %d", n, before)
		}
		if err := sysv.Remove("shm", id); err != nil {
			t.Fatal(err)
		}
	}
	r.Restore(image)
	r.Pass(true)
}

// TestSysVMaker restores shared memory whose maker has ended: it has its pid nevertheless.
func TestSysVMaker(t *testing.T) {
	r := harness.Start(t, "sysvshm", "orphan")
	image := r.Dump("--kill")
	r.WaitGone()
	all, err := sysv.ReadShm()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Key == int32(0x5c000000|r.PID<<4) {
			if err := sysv.Remove("shm", s.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.Restore(image)
	r.Pass(true)
}

// TestSysVLost says of memory that the tree only used, and that nobody has attached, that it is lost.
func TestSysVLost(t *testing.T) {
	r := harness.Start(t, "sysvshm", "used")
	got := harness.Must(t, harness.Binary(), "explain", itoa(r.PID))
	if !strings.HasPrefix(got.Stdout, "lost") {
		t.Errorf("explain says %q", got.Stdout)
	}
	harness.Say(t, "explain", got.Stdout, "pid "+itoa(r.PID), "it was the last to use the segment", "nobody has attached")
	r.Pass(false)
}
