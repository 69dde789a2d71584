package kind

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// newRing makes a ring of ours.
func newRing(t *testing.T, r uringRec) (int, ringParams) {
	t.Helper()
	p := ringParams{Flags: r.Flags, CQEntries: r.CQEntries}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(r.SQEntries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd), p
}

// ringStage is a stage whose only process could have a ring.
func ringStage(t *testing.T) *stage {
	s := newStage(t)
	pid := int32(os.Getpid())
	s.env.Manifest.Tasks[0].MM, s.env.Manifest.Tasks[0].Threads = 1, []image.Thread{{TID: pid}}
	s.env.Manifest.MMs = []image.MM{{}}
	return s
}

// TestRing takes rings there and back: after requests that all completed, that did so without a completion, and with more
// completions than requests.
func TestRing(t *testing.T) {
	for _, c := range []uringRec{
		{SQEntries: 8, CQEntries: 16},
		{SQEntries: 8, CQEntries: 16, SQHead: 1003, CQTail: 1003},
		{SQEntries: 4, CQEntries: 32, SQHead: 100, CQTail: 7, Flags: ringCQSize},
		{SQEntries: 64, CQEntries: 128, SQHead: 9, CQTail: 300},
		{SQEntries: 16, CQEntries: 32, SQHead: 5, CQTail: 9, Flags: ringSQE128 | ringCQE32},
		{SQEntries: 16, CQEntries: 32, SQHead: 50, CQTail: 50, Flags: ringNoSQArray},
	} {
		fd, p := newRing(t, c)
		v, err := c.view(fd, p)
		must(t, err)
		must(t, c.advance(v))
		*v.word(p.SQ.Tail) = c.SQHead + 2 // not submitted yet
		v.sqes[5] = 42
		v.close()
		s := ringStage(t)
		got := s.trip(fd)
		v, err = c.view(got[0], p)
		must(t, err)
		if v.sqes[5] != 42 || *v.word(p.SQ.Tail) != c.SQHead+2 || *v.word(p.CQ.Tail) != c.CQTail {
			t.Errorf("%+v: tail %d, completed %d, an entry %d", c, *v.word(p.SQ.Tail), *v.word(p.CQ.Tail), v.sqes[5])
		}
		v.close()
	}
}

// TestRingBusy refuses a ring that has a request in flight, and one that was not quiet when the tree had just been stopped.
func TestRingBusy(t *testing.T) {
	c := uringRec{SQEntries: 8, CQEntries: 16}
	fd, p := newRing(t, c)
	s := ringStage(t)
	s.scene.Rings = map[uint64]bool{}
	s.add(fd)
	if all := s.check(); len(all) != 0 {
		t.Fatalf("a ring at rest: %q", all)
	}
	s.scene.Still = true
	if all := s.check(); len(all) != 1 || !strings.Contains(all[0].What, "when the tree had just been stopped") {
		t.Errorf("a ring that nobody found quiet: %q", all)
	}
	QuietRings(s.scene.Rings)
	if all := s.check(); len(all) != 0 {
		t.Errorf("a quiet ring: %q", all)
	}
	var ends [2]int
	must(t, unix.Pipe2(ends[:], unix.O_CLOEXEC))
	v, err := c.view(fd, p)
	must(t, err)
	defer v.close()
	v.sqes[0], v.sqes[4] = 6, byte(ends[0]) // IORING_OP_POLL_ADD
	v.sqes[28] = unix.POLLIN
	*v.word(p.SQ.Tail) = 1
	if n, err := v.enter(1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if all := s.check(); len(all) != 1 || !strings.Contains(all[0].What, "requests in flight (1)") {
		t.Errorf("a ring that polls: %q", all)
	}
	QuietRings(s.scene.Rings)
	for ctx, quiet := range s.scene.Rings {
		if quiet {
			t.Errorf("the ring %#x, which polls, is quiet", ctx)
		}
	}
	unix.Close(ends[1])
	must(t, v.take(true, 1))
}

// TestRingHostile refuses records that no checkpoint has written, before there is any process.
func TestRingHostile(t *testing.T) {
	pid := int32(os.Getpid())
	for name, spoil := range map[string]func(r *uringRec){
		"no entries":            func(r *uringRec) { r.SQEntries = 0 },
		"odd entries":           func(r *uringRec) { r.CQEntries = 17 },
		"too many entries":      func(r *uringRec) { r.SQEntries = 1 << 20 },
		"memory of its own":     func(r *uringRec) { r.Flags = ringNoMmap },
		"unknown flags":         func(r *uringRec) { r.Flags = 1 << 30 },
		"too much unsubmitted":  func(r *uringRec) { r.SQTail = r.SQHead + 9 },
		"too much unread":       func(r *uringRec) { r.CQHead = r.CQTail - 17 },
		"a count without end":   func(r *uringRec) { r.SQHead, r.SQTail = 1<<31, 1<<31 },
		"a thread's SQ":         func(r *uringRec) { r.Flags, r.SQTail = ringSQPoll, r.SQHead+1 },
		"disabled and used":     func(r *uringRec) { r.Flags, r.SQHead, r.SQTail = ringDisabled, 1, 1 },
		"nobody makes it":       func(r *uringRec) { r.PID = 1 },
		"no thread makes it":    func(r *uringRec) { r.Thread = 1 },
		"a map of nothing":      func(r *uringRec) { r.Maps = []ringMap{{pid, 4096, 4096, 4096, 3}} },
		"a map too large":       func(r *uringRec) { r.Maps = []ringMap{{pid, 4096, 1 << 30, 0, 3}} },
		"a map without pages":   func(r *uringRec) { r.Maps = []ringMap{{pid, 4097, 4096, 0, 3}} },
		"a map to execute":      func(r *uringRec) { r.Maps = []ringMap{{pid, 4096, 4096, 0, 4}} },
		"a map that is no VMA":  func(r *uringRec) { r.Maps = []ringMap{{pid, 4096, 4096, 0, 3}} },
		"a map of nobody":       func(r *uringRec) { r.Maps = []ringMap{{1, 4096, 4096, 0, 3}} },
		"half a buffer":         func(r *uringRec) { r.Buffers = [][]uint64{{1}} },
		"too many files":        func(r *uringRec) { r.Files = make([]int32, 1<<16) },
		"content of other size": func(r *uringRec) { r.CQEntries = 32 },
		"more than was asked":   func(r *uringRec) { r.Flags, r.CQTail, r.CQHead = ringSingleIssuer, 5, 5 },
	} {
		r := uringRec{PID: pid, Thread: pid, SQEntries: 8, CQEntries: 16, EventFD: -1, Clock: unix.CLOCK_MONOTONIC}
		s := ringStage(t)
		sqes, cqes, array := r.sizes()
		rec := image.File{Kind: "uring", Blob: s.scene.Blob(make([]byte, sqes+cqes+array))}
		must(t, encodeRec(&rec, &r))
		if _, err := (uring{}).CheckOpen(&rec, s.env); err != nil {
			t.Fatalf("a good record: %v", err)
		}
		spoil(&r)
		must(t, encodeRec(&rec, &r))
		if _, err := (uring{}).CheckOpen(&rec, s.env); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if fd, err := (uring{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("%s: opened", name)
		}
	}
}

// TestRingRoot makes no kernel thread of root for who is not root.
func TestRingRoot(t *testing.T) {
	pid := int32(os.Getpid())
	r := uringRec{PID: pid, Thread: pid, SQEntries: 8, CQEntries: 16, Flags: ringSQPoll, EventFD: -1, Clock: unix.CLOCK_MONOTONIC}
	s := ringStage(t)
	sqes, cqes, array := r.sizes()
	rec := image.File{Kind: "uring", Blob: s.scene.Blob(make([]byte, sqes+cqes+array))}
	s.env.Manifest.Tasks[0].Threads[0].Creds.UID = [4]uint32{1000, 1000, 1000, 1000}
	if err := r.fits(&rec, s.env); err == nil || !strings.Contains(err.Error(), "would run as root") {
		t.Errorf("a kernel thread for uid 1000: %v", err)
	}
}

// TestGaps takes every place where a mapping would fit, and what makes its own larger.
func TestGaps(t *testing.T) {
	maps := []procfs.Mapping{{Start: 0x20000, End: 0x30000}, {Start: 0x33000, End: 0x40000}, {Start: 0x41000, End: 0x7fff_ffff_f000}}
	got := gaps(maps, 0x10000, ringMap{Start: 0x31000, Len: 0x1000})
	want := []span{{0x10000, 0x20000}, {0x30000, 0x31000}, {0x32000, 0x33000}, {0x40000, 0x41000}}
	if !slices.Equal(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
	if got := gaps(maps, 0x10000, ringMap{Start: 0x31000, Len: 0x2000}); len(got) != 2 || got[1] != (span{0x30000, 0x31000}) {
		t.Errorf("%#x", got)
	}
}

// TestRingOutside: a ring that a process outside the tree has open too is refused.
func TestRingOutside(t *testing.T) {
	fd, _ := newRing(t, uringRec{SQEntries: 8, CQEntries: 16})
	own, err := unix.Dup(fd)
	must(t, err)
	file := os.NewFile(uintptr(own), "ring")
	defer file.Close()
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{file}
	must(t, child.Start())
	defer child.Wait()
	defer child.Process.Kill()
	s := ringStage(t)
	s.add(fd)
	refused(t, s.check(), fmt.Sprintf("pid %d", child.Process.Pid), "which is outside the tree, has it open too")
}

// TestRingWorkersPinned: the processors of a thread's workers are seen.
func TestRingWorkersPinned(t *testing.T) {
	fd, _ := newRing(t, uringRec{SQEntries: 8, CQEntries: 16})
	const registerAff, unregisterAff = 17, 18 // IORING_REGISTER_IOWQ_AFF, of linux/io_uring.h
	register := func(what, arg, n uintptr) {
		t.Helper()
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), what, arg, n, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	var all, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	for i := range 1024 {
		if all.IsSet(i) {
			one.Set(i)
			break
		}
	}
	runtime.LockOSThread() // it is a setting of the thread
	defer runtime.UnlockOSThread()
	what, err := RingThreads(os.Getpid())
	must(t, err)
	if what != "" {
		t.Errorf("at first: %s", what)
	}
	register(registerAff, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
	what, err = RingThreads(os.Getpid())
	must(t, err)
	if all.Count() > 1 {
		wantWords(t, what, "on which processors", "IORING_REGISTER_IOWQ_AFF")
	}
	register(unregisterAff, 0, 0)
	what, err = RingThreads(os.Getpid())
	must(t, err)
	if what != "" {
		t.Errorf("in the end: %s", what)
	}
}
